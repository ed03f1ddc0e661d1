"""Block maps (.bmap): read, checked, kept up to date beside an image."""
