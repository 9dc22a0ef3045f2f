"""A static site that runs variants in a browser: the page in `page/` is built from `js/page`, and ships as it is."""
