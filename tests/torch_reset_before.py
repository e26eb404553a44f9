"""The GRU that torch has not, whose reset gate comes before the recurrent product.

Step by step on torch's operators, with the names and the calls of ``torch.nn``.
"""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import dropout, linear
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


def stock(name, **options):
    """``torch.nn``'s class of the name, or what stands for it, with these options."""
    if options.pop("reset_after", True):
        return partial(getattr(nn, name), **options)
    return {"GRU": ResetBefore, "GRUCell": ResetBeforeCell}[name]


class ResetBefore(nn.GRU):
    def forward(self, input, hx=None):
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        hx = hx if batched or hx is None else hx.unsqueeze(1)
        output, h_n = self._layers(x, hx, torch.ones(x.shape[:2], dtype=torch.bool))
        if not batched:
            return output.squeeze(1), h_n.squeeze(1)
        return output.transpose(0, 1) if self.batch_first else output, h_n

    def _packed(self, input, hx):
        data, batch_sizes, order, back = input
        x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        inside = torch.arange(len(x))[:, None] < lengths
        hx = hx if hx is None else self.permute_hidden(hx, order)
        output, h_n = self._layers(x, hx, inside)
        packed = PackedSequence(output[inside], batch_sizes, order, back)
        return packed, self.permute_hidden(h_n, back)

    def _layers(self, x, hx, inside):
        finals, directions = [], 2 if self.bidirectional else 1
        for k in range(self.num_layers):
            if k and self.training and self.dropout:  # of the steps that there are
                x = x.masked_scatter(inside[..., None], dropout(x[inside], self.dropout))
            outputs = []
            for d in range(directions):
                h = x.new_zeros(x.shape[1], self.hidden_size)
                h = h if hx is None else hx[k * directions + d]
                output, h_n = self._direction(x, h, inside, f"_l{k}{'_reverse' * d}")
                outputs.append(output)
                finals.append(h_n)
            x = torch.cat(outputs, -1)
        return x, torch.stack(finals)

    def _direction(self, x, h, inside, suffix):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self, name + suffix, None) for name in names]
        reverse, outputs = suffix.endswith("reverse"), []
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            after = step(x[t], h, *weights)
            outputs.append(torch.where(inside[t, :, None], after, torch.zeros_like(after)))
            h = torch.where(inside[t, :, None], after, h)
        return torch.stack(outputs[::-1] if reverse else outputs), h


class ResetBeforeCell(nn.GRUCell):
    def forward(self, input, hx=None):
        h = input.new_zeros(*input.shape[:-1], self.hidden_size) if hx is None else hx
        return step(input, h, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


def step(x, h, w_ih, w_hh, b_ih, b_hh):
    H = h.shape[-1]
    x_r, x_z, x_n = linear(x, w_ih, b_ih).split(H, -1)
    biases = [None] * 3 if b_hh is None else b_hh.split(H)
    u_r, u_z = (linear(h, *gate) for gate in zip(w_hh.split(H)[:2], biases[:2], strict=True))
    r, z = (x_r + u_r).sigmoid(), (x_z + u_z).sigmoid()
    n = (x_n + linear(r * h, w_hh[2 * H :], biases[2])).tanh()
    return (1 - z) * n + z * h
