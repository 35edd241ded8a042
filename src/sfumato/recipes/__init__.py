"""Recipes: a whole experiment as one TOML file, from the data to how the result is judged."""

from .recipe import Recipe, packaged, packaged_path, parse_overrides, read_recipe, recipe_from

__all__ = ["Recipe", "packaged", "packaged_path", "parse_overrides", "read_recipe", "recipe_from"]
