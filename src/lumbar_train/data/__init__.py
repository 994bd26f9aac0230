"""A cohort as training sees it: tables, folds, decoded studies, targets, augmentation."""
