"""`wgtrain serve`: an OpenAI-compatible endpoint over a model and its adapters."""

from pathlib import Path
from typing import Any

import click

from wgtrain.cli.streams import complain
from wgtrain.cli.using import Sectioned, opened, using_options
from wgtrain.errors import FileError, OptionError
from wgtrain.files.source import shown
from wgtrain.infer.sampling import Sampling


@click.command("serve", cls=Sectioned, short_help="Answer over HTTP, as OpenAI's API does.")
@using_options
@click.option(
    "--adapter-dir",
    metavar="DIR",
    help="Adapters that requests may name too: GGUFs, PEFT folders, runs; looked for anew with "
    "each request.",
)
@click.option(
    "--name", metavar="NAME", help="What the model is called.  [default: its file's name]"
)
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="HOST",
    help="Address of this machine to listen on; 0.0.0.0 = all.  [default: 127.0.0.1]",
)
@click.option("--port", default=8080, help="Port, 0 = any free one.  [default: 8080]")
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="WGTRAIN_API_KEY",
    help="Key that requests have to bring; also taken from WGTRAIN_API_KEY.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Web pages that may ask, as https://page.example; repeatable. * = those of every site.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Another name of this machine, where clients or a proxy use one; repeatable.",
)
@click.option(
    "--temperature",
    default=1.0,
    metavar="NUMBER",
    help="Temperature of requests that name none.  [default: 1, as OpenAI's API has it]",
)
def command(**given: Any) -> int:
    """Answer chats and completions over HTTP, as OpenAI's API does, until interrupted.

    \b
      wgtrain serve --adapter runs/mine

    Adapters are models of their own, called MODEL+ADAPTER. The first line on standard output is the
    address; standard error has a line for each request.
    """
    from wgtrain.serve.guards import check_access
    from wgtrain.serve.server import Server, is_loopback
    from wgtrain.serve.shelf import Shelf
    from wgtrain.web.listener import listen

    key, origins, host = given["api_key"], given["allow_origin"], given["host"]
    folder = None if given["adapter_dir"] is None else Path(given["adapter_dir"])
    # All that can be wrong is found before a model is loaded.
    check_access(key, origins)
    if given["name"] is not None and not (given["name"] and given["name"].isprintable()):
        raise OptionError(f"--name {shown(given['name'])}: a printable text is needed")
    Sampling(given["temperature"])
    if folder is not None and not folder.is_dir():
        raise FileError(f"{folder}: no folder, which --adapter-dir has to be")
    with listen(host, given["port"]) as listening, opened(given) as using:
        model = using.model
        using.model.tokenizer  # noqa: B018 - no model without one can answer
        name = given["name"] or Path(model.name).name.removesuffix(".gguf")
        pairs = zip(model.adapters, model.adapters.stack.adapters, strict=True)
        there = [(named, adapter, scale) for (named, _), (adapter, scale) in pairs]
        server = Server(
            model,
            Shelf(name, there, folder, model.adapters.read, complain),
            host=host,
            listening=listening,
            key=key,
            origins=origins,
            names=given["allow_host"],
            temperature=given["temperature"],
            say=complain,
        )
        if not is_loopback(host) and key is None:
            complain("warning: whoever reaches this machine may ask; --api-key asks for a key")
        if not using.templated:
            complain("warning: no chat template, which chats need; --chat-template brings one")
        click.echo(server.address)
        complain(f"OpenAI's clients: {server.address}/v1, model {name}")
        server.serve_forever()
    return 0
