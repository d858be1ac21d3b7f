"""Placing arrays on devices: meshes, rule tables, shardings of a pytree."""
