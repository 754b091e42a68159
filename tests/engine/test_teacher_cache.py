"""Answers that are computed once and kept."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

from compress.engine.place import Place
from compress.engine.player import Frozen
from compress.engine.recalled import Recalled, recalled
from compress.errors import UsageError


class Heard(Frozen):
    """A teacher that counts the images it is asked about."""

    asked = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return super().__call__(x)


def made(images: int = 10) -> tuple[Recalled, Heard, Tensor]:
    net = Heard(tiny.born(1), Place(tiny.CPU, "32"))
    return Recalled(net, images, tiny.CLASSES), net, tiny.Pictures(images).pixels / 255


def test_what_is_known_is_not_asked_again_and_answered_alike():
    known, net, x = made()
    one, other = torch.tensor([3, 1, 7]), torch.tensor([7, 3, 1])
    first = known(x[one], one)
    assert torch.equal(first, net.net(x[one]))
    assert net.asked == 3
    assert torch.equal(known(x[other], other), first[[2, 0, 1]])
    assert net.asked == 3


def test_a_batch_with_new_images_is_asked_about_whole_but_what_was_said_before_stands():
    known, net, x = made()
    known(x[:4], torch.arange(4))
    before = known.table[:4].clone()
    mixed = torch.tensor([2, 3, 4, 5])
    answer = known(x[mixed] + torch.tensor([1.0, 1.0, 0.0, 0.0]).view(-1, 1, 1, 1), mixed)
    assert net.asked == 8
    assert torch.equal(known.table[:4], before)
    assert torch.equal(answer[:2], before[2:])
    assert torch.allclose(answer[2:], net.net(x[4:6]), atol=1e-6)
    assert known.known.tolist() == [True] * 6 + [False] * 4


def test_an_image_that_comes_twice_in_a_batch_has_one_answer():
    known, net, x = made()
    twice = torch.tensor([5, 5, 2, 5])
    answer = known(x[twice], twice)
    assert torch.equal(answer[0], answer[3])
    assert torch.allclose(answer, net.net(x[twice]), atol=1e-6)


def test_its_state_is_all_of_it():
    known, _, x = made()
    known(x[:5], torch.arange(5))
    again, net, _ = made()
    again.load_state_dict({key: value.clone() for key, value in known.state_dict().items()})
    assert torch.equal(again(x[:5], torch.arange(5)), known.table[:5])
    assert net.asked == 0


def test_augmented_images_and_answers_a_pixel_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"^method\.keep_answers: every picture is changed.*method\.augment=false"):
        recalled(tiny.tiny_run(tmp_path), "unlabelled", changing=True)
    known = Recalled(Frozen(torch.nn.Conv2d(3, 4, 1), Place(tiny.CPU, "32")), 2, 4)
    with pytest.raises(UsageError, match=r"^method\.keep_answers: this teacher answers every pixel"):
        known(torch.rand(2, 3, 8, 8), torch.arange(2))
