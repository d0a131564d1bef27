"""Two steps under TRL where the first part of every sequence is no label; prints one line of JSON.

The same code as a profile runs, but for the labels, and for a spy that counts the positions handed to the fused head.
"""

import json
import sys

import msgspec

from qmem.profiler import worker
from qmem.profiler.protocol import Closed, Request

request = msgspec.json.decode(sys.argv[1], type=Request)
unlabelled = int(sys.argv[2])
worker._load_phantom(request)

from qmem.profiler.device import DeviceCounters  # noqa: E402

device = DeviceCounters()
worker._import_libraries(request.job)

import torch  # noqa: E402
import trl.trainer.utils  # noqa: E402
from datasets import Dataset  # noqa: E402

from qmem.profiler.running import run_job  # noqa: E402
from qmem.profiler.stacks import trl as stack  # noqa: E402

scored = []
whole_dataset = stack._make_dataset
fused_head = trl.trainer.utils._ChunkedLogProbFunction


class Spy:
    @staticmethod
    def apply(hidden, *others):
        scored.append(hidden.shape[0])
        return fused_head.apply(hidden, *others)


def partly_labelled(run):
    columns = whole_dataset(run).to_dict()
    columns["labels"] = [[-100] * unlabelled + labels[unlabelled:] for labels in columns["labels"]]
    return Dataset.from_dict(columns)


def tell(event):
    if isinstance(event, Closed) and event.place.step == 2:
        peaks[event.place.phase] = event.requested.peak


stack._make_dataset = partly_labelled
trl.trainer.utils._ChunkedLogProbFunction = Spy
peaks = {}
device.attach()
torch.cuda.init()
with worker._watching(request) as verdict:
    run_job(request, device, tell, verdict)
sys.stdout.write(json.dumps({"scored": sorted(set(scored)), "state": verdict.state, "peaks": peaks}))
