"""A planted model in two processes: what is sent, what is sharded, what merge gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "python_tests.planting.two_processes"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_data_parallel_sends_statistics_alone(seen):
    for own in (one["ddp"] for one in seen):
        assert own["sent"] == 3 * own["buffers"]
        assert own["buffers"] < own["weights"] / 10
        assert own["kept"]


def test_data_parallel_begins_with_the_trunk_of_the_first_process(seen):
    assert seen[0]["ddp"]["synchronised"] == seen[1]["ddp"]["synchronised"]
    assert seen[0]["ddp"]["synchronised"] == seen[0]["ddp"]["trunk"] == seen[1]["ddp"]["trunk"]


def test_data_parallel_trains_one_set_of_blocks(seen):
    assert seen[0]["ddp"]["blocks"] == seen[1]["ddp"]["blocks"]


def test_fully_shard_shards_the_trunk_too_and_merges_where_it_is_gathered(seen):
    for own in (one["fsdp"] for one in seen):
        assert 0.4 < own["share"] < 0.6
        assert own["kept"]
        assert own["error"] < 1e-5
        assert "shard" in own["refused"]
