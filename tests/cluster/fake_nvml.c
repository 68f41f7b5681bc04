/* NVML on a machine with two GPUs, the second for one process only and divided into parts: with the signatures of nvml.h. */
#include <stdio.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef struct nvmlDevice_st { unsigned int index; } *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef int nvmlComputeMode_t;

static struct nvmlDevice_st devices[] = {{0}, {1}};

static nvmlReturn_t say(char *where, unsigned int length, const char *word) {
    if (strlen(word) + 1 > length) return 7; /* NVML_ERROR_INSUFFICIENT_SIZE */
    strcpy(where, word);
    return 0;
}

nvmlReturn_t nvmlInit_v2(void) { return 0; }
nvmlReturn_t nvmlShutdown(void) { return 0; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) { return say(version, length, "580.65.06"); }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) { *device = &devices[index]; return 0; }
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) { return say(name, length, "NVIDIA H100"); }
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    char word[16];
    snprintf(word, sizeof word, "GPU-%u", device->index);
    return say(uuid, length, word);
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    memory->total = 80ULL << 30; memory->free = 60ULL << 30; memory->used = 20ULL << 30;
    return 0;
}
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *mode, unsigned int *pending) {
    if (device->index == 0) return 3; /* NVML_ERROR_NOT_SUPPORTED */
    *mode = 1; *pending = 0;
    return 0;
}
nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode) { *mode = device->index ? 3 : 0; return 0; }
