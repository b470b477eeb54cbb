"""`fairway schema`: the recipe's JSON schema."""

GROUP = "Looking things up"


def schema() -> None:
    """Print the JSON schema of a recipe, for editors that check and complete YAML.

    Example: `fairway schema > recipe.schema.json`
    """
    import json

    from fairway.run import Recipe

    found = Recipe.model_json_schema()
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=2))
