"""The page, served locally."""
