"""A package, so that `tests.pipelines` is this one where an installed package calls itself tests, too."""
