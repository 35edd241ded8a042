"""`sfumato recipes`."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

app = App(name="recipes", help="List, show and copy recipes: whole experiments as TOML files.")


@app.command(name="list")
def list_() -> int:
    """List the recipes that come with sfumato."""
    from ..recipes import packaged, read_recipe
    from .show import table

    table("", ["recipe", "what it makes"], [(name, read_recipe(name).about) for name in packaged()])
    return 0


@app.command
def show(recipe: str, /, *overrides: str) -> int:
    """Print a recipe whole, with its defaults and your overrides.

    Parameters
    ----------
    recipe
        A packaged recipe or a file.
    overrides
        Section.name=value, as often as needed.
    """
    from ..recipes import parse_overrides, read_recipe
    from ..recipes.recipe import to_toml

    print(to_toml(read_recipe(recipe, parse_overrides(overrides))), end="")
    return 0


@app.command
def copy(recipe: str, to: Path, /) -> int:
    """Copy a packaged recipe to a file of your own, to be changed.

    Parameters
    ----------
    recipe
        The packaged recipe.
    to
        The file to write, for example my.toml; it must not exist.
    """
    from ..errors import RecipeError
    from ..recipes import packaged_path
    from .show import console

    content = packaged_path(recipe).read_bytes()
    try:
        with open(to, "xb") as file:
            file.write(content)
    except FileExistsError:
        raise RecipeError(f"{to} exists already: choose another name") from None
    except OSError as error:
        raise RecipeError(f"cannot write {to}: {error.strerror}") from None
    console.print(
        f"Change {to}, then: sfumato train {to if to.suffix == '.toml' else f'./{to}'} --out runs/mine"
    )
    return 0
