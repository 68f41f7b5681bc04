/* As much of CUDA's driver as a transport uses, with the signatures of cuda.h 13, over files that are mapped: so two
   processes share "device" memory, and what is mapped stays readable when its owner is gone. Says nothing of whether a
   device does so, too. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef CUDA_VERSION
typedef unsigned long long CUdeviceptr;
typedef int CUresult;
typedef struct CUstream_st *CUstream;
typedef struct { char reserved[64]; } CUipcMemHandle;
typedef struct { int type, id; } CUmemLocation;
typedef struct { int srcAccessOrder; CUmemLocation srcLocHint, dstLocHint; unsigned int flags; } CUmemcpyAttributes;
#endif

#define MOST 4096
static struct { char *base; size_t size; char path[48]; } allocations[MOST];
static int allocated;
int fake_opened, fake_copies, fake_batches;

static char *mapped(const char *path, size_t size, int flags) {
    int file = open(path, O_RDWR | flags, 0600);
    if (file < 0) return NULL;
    if (flags && ftruncate(file, size)) return NULL;
    char *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return base == MAP_FAILED ? NULL : base;
}

void *fake_allocate(const char *path, size_t size) {
    if (allocated == MOST) return NULL;
    allocations[allocated].base = mapped(path, size, O_CREAT);
    allocations[allocated].size = size;
    strncpy(allocations[allocated].path, path, 47);
    return allocations[allocated++].base;
}

static int holder(CUdeviceptr where) {
    for (int n = 0; n < allocated; n++)
        if ((char *)where >= allocations[n].base && (char *)where < allocations[n].base + allocations[n].size) return n;
    return -1;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr where) {
    int n = holder(where);
    if (n < 0) return 1;
    *base = (CUdeviceptr)allocations[n].base;
    *size = allocations[n].size;
    return 0;
}

CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr where) {
    int n = holder(where);
    if (n < 0) return 1;
    memcpy(handle->reserved, &allocations[n].size, sizeof(size_t));
    memcpy(handle->reserved + sizeof(size_t), allocations[n].path, 48);
    return 0;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *base, CUipcMemHandle handle, unsigned int flags) {
    size_t size;
    memcpy(&size, handle.reserved, sizeof size);
    char *there = flags == 1 ? mapped(handle.reserved + sizeof size, size, 0) : NULL;
    if (!there) return 217; /* CUDA_ERROR_PEER_ACCESS_UNSUPPORTED */
    *base = (CUdeviceptr)there;
    fake_opened++;
    return 0;
}

CUresult cuIpcCloseMemHandle(CUdeviceptr base) { (void)base; fake_opened--; return 0; }

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    (void)stream;
    memcpy((void *)to, (void *)from, size);
    fake_copies++;
    return 0;
}

CUresult cuMemcpyBatchAsync_v2(CUdeviceptr *to, CUdeviceptr *from, size_t *sizes, size_t count,
                               CUmemcpyAttributes *attributes, size_t *first, size_t kinds, CUstream stream) {
    if (!stream || kinds != 1 || first[0] != 0 || attributes[0].srcAccessOrder != 1 || attributes[0].flags) return 1;
    for (size_t n = 0; n < count; n++) memcpy((void *)to[n], (void *)from[n], sizes[n]);
    fake_batches++;
    return 0;
}

CUresult cuGetErrorName(CUresult error, const char **word) {
    *word = error == 217 ? "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED" : "CUDA_ERROR_INVALID_VALUE";
    return 0;
}
