"""Pages that are generated when the site is built, from the code that they describe."""
