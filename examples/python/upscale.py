#!/usr/bin/env python3
# SPDX-License-Identifier: MPL-2.0
"""Upscales the video of a file: `upscale.py INPUT OUTPUT.mp4`, with the element starsr through GStreamer's Python bindings.

Debian and Ubuntu have these as python3-gi and gir1.2-gstreamer-1.0. GST_PLUGIN_PATH names the plugin's folder unless it is installed.
"""

import argparse
import signal
import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402

PIPELINE = "filesrc name=source ! decodebin ! starsr name=starsr ! queue ! x264enc ! h264parse ! mp4mux ! filesink name=sink"


class Upscale:
    """A pipeline from file to file, and its reports."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.loop = GLib.MainLoop()
        self.failure: str | None = None
        self.prompts = sorted(options.prompt_at, key=lambda change: change[0])
        self.pipeline = Gst.parse_launch(PIPELINE)
        self.starsr = self.pipeline.get_by_name("starsr")
        self.pipeline.get_by_name("source").set_property("location", options.input)
        self.pipeline.get_by_name("sink").set_property("location", options.output)
        self.starsr.set_property("strength", options.strength)
        for assignment in options.set:
            name, _, value = assignment.partition("=")
            if not self.starsr.find_property(name):
                raise ValueError(f"starsr has no property {name}")
            Gst.util_set_object_arg(self.starsr, name, value)
        if options.prompt is not None:
            self.starsr.set_property("prompt", options.prompt)
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message", self.on_message)
        if self.prompts:
            # In the thread that runs the model, so that a change always falls between the same windows.
            bus.enable_sync_message_emission()
            bus.connect("sync-message::element", self.change_prompt)

    def run(self) -> None:
        """Plays to the end. Raises RuntimeError with the first error's text."""
        # An interrupt ends the stream, so that the file is complete as far as it goes.
        GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGINT, self.on_interrupt)
        # The bus has the reason of a failure to start.
        self.pipeline.set_state(Gst.State.PLAYING)
        self.loop.run()
        if not self.failure:
            self.print_stats()
        self.pipeline.set_state(Gst.State.NULL)
        if self.failure:
            raise RuntimeError(self.failure)

    def on_interrupt(self) -> bool:
        self.pipeline.send_event(Gst.Event.new_eos())
        return GLib.SOURCE_CONTINUE

    def on_message(self, bus: Gst.Bus, message: Gst.Message) -> None:
        match message.type:
            case Gst.MessageType.EOS:
                self.loop.quit()
            case Gst.MessageType.ERROR:
                error, _ = message.parse_error()
                self.failure = self.failure or f"{message.src.get_name()}: {error.message}"
                self.loop.quit()
            case Gst.MessageType.WARNING:
                error, _ = message.parse_warning()
                print(f"warning: {error.message}", file=sys.stderr)
            case Gst.MessageType.LATENCY:
                self.pipeline.recalculate_latency()
            case Gst.MessageType.ELEMENT if message.has_name("starsr-progress"):
                self.on_progress(message.get_structure())
            case Gst.MessageType.ELEMENT if message.has_name("starsr-bypass"):
                structure = message.get_structure()
                frames, reason = structure.get_value("frames"), structure.get_value("reason")
                print(f"{frames} frames come out as the plain upscale: {reason}", file=sys.stderr)

    def on_progress(self, structure: Gst.Structure) -> None:
        """Says how far the file is."""
        took = structure.get_value("time") / Gst.SECOND
        known, duration = self.pipeline.query_duration(Gst.Format.TIME)
        of = f" of {duration / Gst.SECOND:.1f}" if known else ""
        print(f"{begin(structure):.1f}{of} s: {structure.get_value('evaluations')} evaluations in {took:.2f} s")

    def change_prompt(self, bus: Gst.Bus, message: Gst.Message) -> None:
        """Sets the next prompt after a window that begins at its time or later: it holds from the next window on."""
        if not message.has_name("starsr-progress"):
            return
        while self.prompts and self.prompts[0][0] <= begin(message.get_structure()):
            _, text = self.prompts.pop(0)
            self.starsr.set_property("prompt", text)
            print(f"the prompt is now: {text}")

    def print_stats(self) -> None:
        stats = self.starsr.get_property("stats")
        fields = [stats.nth_field_name(n) for n in range(stats.n_fields())]
        for field in fields:
            value = stats.get_value(field)
            print(f"{field}: {value / Gst.SECOND:.3f} s" if field.startswith("time-") else f"{field}: {value}")


def begin(progress: Gst.Structure) -> float:
    """The running time of a window's first frame, in seconds."""
    return (progress.get_value("running-time") or 0) / Gst.SECOND


def prompt_at(text: str) -> tuple[float, str]:
    seconds, _, prompt = text.partition(":")
    return float(seconds), prompt


def main() -> None:
    parser = argparse.ArgumentParser(description="Upscales the video of a file.")
    parser.add_argument("input")
    parser.add_argument("output", help="an .mp4 file, without sound")
    parser.add_argument("--strength", type=float, default=-1.0, help="0 is the plain upscale, 1 the model's picture")
    parser.add_argument("--prompt", help="what the video shows, for a bundle with text condition")
    parser.add_argument(
        "--prompt-at",
        type=prompt_at,
        action="append",
        default=[],
        metavar="SECONDS:TEXT",
        help="another prompt from then on; may be repeated",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other property of starsr; may be repeated"
    )
    options = parser.parse_args()
    Gst.init(None)
    try:
        Upscale(options).run()
    except (GLib.Error, ValueError, RuntimeError) as error:
        sys.exit(f"upscale.py: {error}")


if __name__ == "__main__":
    main()
