"""A language model as a program for the native decoding step.

Reads the model's parts and writes down, in the order of their forwards, what each computes for one token. What no
instruction computes raises `Untranslated` with the reason. The parts' own forwards stay the definition: tests compare
the two token by token. Shape key: D width, E inner width, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fairway.model.block import Block
from fairway.model.depth.plain import Plain
from fairway.model.depth.recurrent import Recurrent
from fairway.model.depth.shared import Shared
from fairway.model.embedding.bigram_hash import BigramHashEmbedding
from fairway.model.embedding.factored import FactoredEmbedding
from fairway.model.embedding.token import TokenEmbedding
from fairway.model.embedding.value import ValueEmbedding
from fairway.model.lm import LanguageModel
from fairway.model.parts import Depth, Embedding
from fairway.model.position.learned import LearnedPosition
from fairway.model.stack import step_signal
from fairway.ops.decode_step.program import Add, Apply, Cap, Embed, EmbedPair, Lerp, Normalise, Program, Span
from fairway.serve.translate_block import Untranslated, Writer, normalise, write_block


def translate(network: LanguageModel, length: int, steps: Mapping[int, Tensor]) -> Program:
    """The step of a model for sequences of up to `length` tokens; raises `Untranslated` where there is none.

    `steps`: by the `id` of a parameter, what its rows are whole multiples of, if anything.
    """
    if network.device.type != "cpu" or any(one.dtype != torch.float32 for one in network.parameters()):
        raise Untranslated("its parameters are not float32 on the CPU")
    writer = Writer(length, steps)
    x_D, value = _write_input(writer, network)
    _write_depth(writer, network.depth, x_D, value)
    body = tuple(writer.instructions)
    writer.instructions.clear()
    hidden_D = writer.span(x_D.size)
    normalise(writer, hidden_D, x_D, network.norm)
    logits_V = _write_head(writer, network, hidden_D)
    head = tuple(writer.instructions)
    return Program(body, head, logits_V, writer.arena, tuple(writer.matrices), tuple(writer.caches), length)


def _write_input(writer: Writer, network: LanguageModel) -> tuple[Span, Span | None]:
    """The embedded input of the first block, and the value embedding."""
    value: list[Span] = []
    x_D = _write_embedding(writer, network.embedding, network.config.width, value)
    if network.smear is not None:
        last_D, raw_D = writer.span(x_D.size), x_D
        x_D = writer.span(x_D.size)
        writer.add(Lerp(x_D, raw_D, last_D, network.smear.gate_D.detach().sigmoid()), Add(last_D, raw_D))
    if isinstance(network.position, LearnedPosition):
        if writer.length > len(network.position.weight):
            raise Untranslated("its learned positions end before the window does")
        place_D = writer.span(x_D.size)
        matrix = writer.matrix(network.position.weight)
        writer.add(Embed(place_D, matrix, by_position=True), Add(x_D, x_D, place_D))
    elif network.position is not None:
        raise Untranslated(f"its input is told positions by a {type(network.position).__name__}")
    if network.scale is not None:
        scale = network.scale.start if network.scale.scale is None else float(network.scale.scale)
        writer.add(Add(x_D, x_D, first_scale=scale))
    for more in value[1:]:
        writer.add(Add(value[0], value[0], more))
    return x_D, value[0] if value else None


def _write_embedding(writer: Writer, embedding: Embedding, width: int, value: list[Span]) -> Span:
    match embedding:
        case TokenEmbedding():
            x_D = writer.span(width)
            writer.add(Embed(x_D, writer.matrix(embedding.weight)))
            return x_D
        case FactoredEmbedding():
            inner_E = writer.span(embedding.table_VE.shape[1])
            writer.add(Embed(inner_E, writer.matrix(embedding.table_VE)))
            return writer.product(inner_E, embedding.up.weight)
        case ValueEmbedding():
            own = writer.span(embedding.table_VE.shape[1])
            writer.add(Embed(own, writer.matrix(embedding.table_VE)))
            value.append(own)
            return _write_embedding(writer, embedding.base, width, value)
        case BigramHashEmbedding():
            x_D = _write_embedding(writer, embedding.base, width, value)
            inner_E = writer.span(embedding.table_NE.shape[1])
            writer.add(EmbedPair(inner_E, writer.matrix(embedding.table_NE), writer.span(1)))
            pair_D = writer.product(inner_E, embedding.up.weight)
            writer.add(Add(x_D, x_D, pair_D, second_scale=float(embedding.scale)))
            return x_D
    raise Untranslated(f"its embedding is a {type(embedding).__name__}")


def _write_depth(writer: Writer, depth: Depth, x_D: Span, value: Span | None) -> None:
    if isinstance(depth, (Plain, Shared)):
        _write_blocks(writer, depth.blocks, x_D, value)
    elif isinstance(depth, Recurrent):
        _write_blocks(writer, depth.prelude, x_D, value)
        _write_loops(writer, depth, x_D, value)
        _write_blocks(writer, depth.coda, x_D, value)
    else:
        raise Untranslated(f"its depth is a {type(depth).__name__}")


def _write_blocks(writer: Writer, blocks: nn.ModuleList, x_D: Span, value: Span | None) -> None:
    for block in blocks:
        if not isinstance(block, Block):
            raise Untranslated(f"its blocks are a {type(block).__name__}")
        write_block(writer, block, x_D, value)


def _write_loops(writer: Writer, depth: Recurrent, x_D: Span, value: Span | None) -> None:
    """The core again and again, each time told the loop and shown the loop's first input."""
    start_D, core_D = writer.span(x_D.size), writer.span(x_D.size)
    writer.add(Add(start_D, x_D))
    injected_D = None if depth.inject is None else writer.product(start_D, depth.inject.weight)
    for loop in range(depth.loops(1.0)):
        signal_D = None
        if depth.signal is not None:
            signal_D = step_signal(loop, x_D.size, depth.signal.scale) * depth.signal.scale.detach()
        elif depth.step_LD is not None:
            signal_D = depth.step_LD[loop].detach()
        writer.add(Add(core_D, x_D))
        if signal_D is not None:
            writer.add(Add(core_D, x_D, _constant(writer, signal_D)))
        if depth.inject_D is not None:
            writer.add(Add(core_D, core_D, start_D, gain_N=depth.inject_D.detach()))
        if injected_D is not None:
            writer.add(Add(core_D, core_D, injected_D))
        _write_blocks(writer, depth.core, core_D, value)
        mixed = Add(x_D, core_D)
        writer.add(mixed if depth.gain_LD is None else Lerp(x_D, x_D, core_D, depth.gain_LD[loop].detach()))


def _constant(writer: Writer, value_D: Tensor) -> Span:
    """A vector that is the same for every token: the bias of a norm of nothing."""
    to_D = writer.span(len(value_D))
    writer.add(Normalise(to_D, to_D, "tanh", alpha=0.0, bias_N=value_D))
    return to_D


def _write_head(writer: Writer, network: LanguageModel, hidden_D: Span) -> Span:
    head = network.head
    if head.own is not None:
        logits_V = writer.product(hidden_D, head.own.weight)
    else:
        logits_V = _write_unembedding(writer, network.embedding, hidden_D)
    if head.config.scale != 1.0:
        writer.add(Add(logits_V, logits_V, first_scale=head.config.scale))
    if head.config.softcap is not None:
        writer.add(Cap(logits_V, logits_V, head.config.softcap))
    return logits_V


def _write_unembedding(writer: Writer, embedding: Embedding, hidden_D: Span) -> Span:
    match embedding:
        case TokenEmbedding():
            return writer.product(hidden_D, embedding.weight)
        case FactoredEmbedding():
            down = embedding.down
            if down is None:
                inner_E = writer.product(hidden_D, embedding.up.weight.detach().T.contiguous())
            else:
                inner_E = writer.product(hidden_D, down.dense.weight)
                writer.add(Add(inner_E, inner_E, _constant(writer, down.dense_bias_E.detach())))
                writer.add(Apply(inner_E, inner_E, "gelu"))
                gain_E, bias_E = down.gain_E.detach(), down.bias_E.detach()
                writer.add(Normalise(inner_E, inner_E, "layer", eps=1e-5, gain_N=gain_E, bias_N=bias_E))
            return writer.product(inner_E, embedding.table_VE)
        case ValueEmbedding() | BigramHashEmbedding():
            return _write_unembedding(writer, embedding.base, hidden_D)
    raise Untranslated(f"its embedding is a {type(embedding).__name__}")
