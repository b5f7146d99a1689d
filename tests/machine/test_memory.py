"""Out of memory is recognised by every library's sentence, and torch's own cache counts as free."""

import pytest
import torch

from curvcli.machine import device
from curvcli.machine.memory import out_of_memory

# As torch words them.
SENTENCES = [
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "GET was unable to find an engine to execute this computation",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnSgesvd(handle)`",
    "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "CUDA error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES when calling `cusparseCreate(handle)`",
    "NCCL error: unhandled cuda error, Last error: Cuda failure 2 'out of memory'",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "MPS backend out of memory (MPS allocated: 9.00 GB)",
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_every_sentence_is_recognised(sentence: str) -> None:
    assert out_of_memory(RuntimeError(sentence))


@pytest.mark.parametrize(
    "sentence",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
        "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    ],
)
def test_other_failures_are_not(sentence: str) -> None:
    assert not out_of_memory(RuntimeError(sentence))


def test_blocks_that_torch_keeps_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an analysis the driver sees nothing free that the next one may well use."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 8000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 500)
    assert device.free_memory(torch.device("cuda")) == int(device._MARGIN * (1000 + 7500))
