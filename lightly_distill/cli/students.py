"""`lightly-distill students`."""

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lightly_distill.errors import UsageError
from lightly_distill.models.students import find_adapter

ABOUT = "Lists the students that take images of a size."


def arguments(parser: ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--image-size", type=PositiveInt, required=True, metavar="S", help="Height and width of the images, in pixels."
    )
    parser.add_argument("--name", type=str, default="*", metavar="PATTERN", help="Of names, such as 'resnet*'.")


def run(options: Namespace) -> None:
    """Runs the command."""
    adapter, pattern = find_adapter(options.name)
    size = options.image_size
    tried = adapter.list_students(size, pattern)
    if not tried:
        raise UsageError(f"No student's name matches '{options.name}': * stands for any letters, ? for one.")
    fitting = {name: facts for name, facts in tried.items() if facts is not None}
    width = max(map(len, fitting), default=0)
    for name, facts in sorted(fitting.items(), key=lambda item: item[1].parameters):
        print(f"{name:{width}} {facts.parameters / 1e6:9.2f} M parameters {facts.features:6d} features")
    print(f"{len(fitting)} of {len(tried)} names fit images of {size}x{size}.")
