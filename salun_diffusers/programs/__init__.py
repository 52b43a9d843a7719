"""What one types: every module has a `main`, which is a sub-command of `salun`."""
