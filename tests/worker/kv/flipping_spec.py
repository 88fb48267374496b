"""An offloading spec with a fault: every byte that comes back from host memory is wrong, as after a broken
copy kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memserve.worker.kv.offload import CpuTieringOffloadingSpec


class FlippingSpec(CpuTieringOffloadingSpec):
    def get_worker(self, kv_caches: Any) -> Any:
        worker: Any = super().get_worker(kv_caches)
        copy = worker._copy

        def copy_wrongly(piece: Any, *, to_host: bool) -> int:
            copied: int = copy(piece, to_host=to_host)
            if not to_host:
                for ref in piece.refs:
                    pages = worker._pages[ref.tensor_idx]
                    pages[piece.blocks] = np.negative(pages[piece.blocks])
            return copied

        worker._copy = copy_wrongly
        return worker
