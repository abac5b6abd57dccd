"""How servers behave, from what their clients saw of them."""
