"""Programs that make committed files of the package; they are not shipped with it."""
