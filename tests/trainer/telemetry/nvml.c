/* A stand-in for NVML, as a real shared library: libnvidia-ml.so.1 of a machine without a GPU.

It answers the calls that trainer/telemetry makes. Before each call it reads the file that NVML_STANDIN names, which has
a line for each thing that differs from two healthy cards:

    cards 1                                 how many cards there are
    nvmlDeviceGetPowerUsage 15              this call returns error 15, for every card
    nvmlDeviceGetPowerUsage@1 3             for card 1 alone
    all 15                                  every call about a card does; all@1: about card 1
    hang nvmlDeviceGetPowerUsage            this call does not return while the line is there
    load 2                                  the driver was loaded for the second time: NVML must be initialized anew
    power 250000                            a value of every card; power@1: of card 1. The names are below
    xids 2                                  so many Xids have come since the start; xid: their number
*/
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 6, TIMEOUT = 10 };
enum { CARDS = 8, SHARES = 2 };

typedef struct { int card, share; } Device; /* share -1: the card itself */
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; int sensor, celsius; } Temperature;
typedef struct { Device *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Event;

static Device devices[CARDS][SHARES + 1];
static long long loaded; /* the load of the driver that NVML was initialized for; 0: not at all */
static long long seen_xids;

static int find(const char *name, int card, long long *value)
{
    char with_card[128], line[256], key[128];
    long long number;
    int found = 0;
    const char *path = getenv("NVML_STANDIN");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file)
        return 0;
    snprintf(with_card, sizeof with_card, "%s@%d", name, card);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "%127s %lld", key, &number) == 2 && (!strcmp(key, with_card) || (!found && !strcmp(key, name))))
            *value = number, found = 1;
    fclose(file);
    return found;
}

static long long value_of(const char *name, int card, long long otherwise)
{
    find(name, card, &otherwise);
    return otherwise;
}

static int hangs(const char *function)
{
    char line[256], wanted[160];
    int found = 0;
    FILE *file = fopen(getenv("NVML_STANDIN") ? getenv("NVML_STANDIN") : "/dev/null", "r");
    snprintf(wanted, sizeof wanted, "hang %s\n", function);
    while (file && fgets(line, sizeof line, file))
        found |= !strcmp(line, wanted);
    if (file)
        fclose(file);
    return found;
}

/* What a call about a card returns before it looks at anything. */
static int check(const char *function, int card)
{
    long long error = SUCCESS;
    while (hangs(function))
        usleep(2000);
    if (find(function, card, &error))
        return (int)error;
    if (loaded != value_of("load", -1, 1))
        return UNINITIALIZED;
    if (card >= 0 && find("all", card, &error))
        return (int)error;
    return SUCCESS;
}

#define CHECK(device) \
    do { \
        int error = check(__func__, (device) ? ((Device *)(device))->card : -1); \
        if (error) \
            return error; \
    } while (0)

void standin_reset(void) { loaded = seen_xids = 0; }

int nvmlInitWithFlags(unsigned flags)
{
    long long error = SUCCESS;
    (void)flags;
    while (hangs(__func__))
        usleep(2000);
    if (find(__func__, -1, &error) && error)
        return (int)error;
    loaded = value_of("load", -1, 1);
    for (int card = 0; card < CARDS; card++)
        for (int share = 0; share <= SHARES; share++)
            devices[card][share] = (Device){card, share - 1};
    return SUCCESS;
}

int nvmlShutdown(void) { CHECK(NULL); loaded = 0; return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stand-in"; }
int nvmlDeviceGetCount_v2(unsigned *count) { CHECK(NULL); *count = value_of("cards", -1, 2); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device)
{
    int error = check(__func__, (int)index);
    if (error)
        return error;
    if (index >= (unsigned)value_of("cards", -1, 2))
        return INVALID_ARGUMENT;
    *device = &devices[index][0];
    return SUCCESS;
}

/* GPU-<card>-0000 of a card, MIG-<card>-<share> of a part of it */
int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device)
{
    int card = -1, share = -1, is_card = sscanf(uuid, "GPU-%d-0000", &card) == 1 && strlen(uuid) == 10;
    CHECK(NULL);
    if (!is_card && (sscanf(uuid, "MIG-%d-%d", &card, &share) != 2 || share < 0 || share >= SHARES))
        return NOT_FOUND;
    if (card < 0 || card >= value_of("cards", -1, 2))
        return NOT_FOUND;
    *device = &devices[card][share + 1];
    return SUCCESS;
}

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned length)
{
    CHECK(device);
    snprintf(uuid, length, "GPU-%d-0000", device->card);
    return SUCCESS;
}

int nvmlDeviceGetName(Device *device, char *name, unsigned length)
{
    CHECK(device);
    snprintf(name, length, "NVIDIA Stand-in");
    return SUCCESS;
}

int nvmlDeviceGetIndex(Device *device, unsigned *index) { CHECK(device); *index = device->card; return SUCCESS; }

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *share, Device **device)
{
    CHECK(share);
    *device = &devices[share->card][0];
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory)
{
    long long part = device->share < 0 ? 1 : 4;
    CHECK(device);
    memory->total = value_of("memory", device->card, 24000000000) / part;
    memory->used = value_of("used", device->card, 6000000000) / part;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates)
{
    CHECK(device);
    if (device->share >= 0)
        return NOT_SUPPORTED; /* as of a MIG instance */
    rates->gpu = value_of("utilization", device->card, 90);
    rates->memory = 40;
    return SUCCESS;
}

int nvmlDeviceGetTemperatureV(Device *device, Temperature *temperature)
{
    CHECK(device);
    temperature->celsius = value_of("temperature", device->card, 60);
    return SUCCESS;
}

#define NUMBER(function, type, name, otherwise) \
    int function(Device *device, type *number) \
    { \
        CHECK(device); \
        *number = (type)value_of(name, device->card, otherwise); \
        return SUCCESS; \
    }

NUMBER(nvmlDeviceGetPowerUsage, unsigned, "power", 70000)                               /* milliwatts */
NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, "energy", 1000000)      /* millijoules */
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "reasons", 0)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "old_reasons", 0)

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *celsius)
{
    (void)sensor;
    CHECK(device);
    *celsius = value_of("old_temperature", device->card, 59);
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Device *device, int kind, unsigned *mhz)
{
    CHECK(device);
    *mhz = kind == 1 ? value_of("sm_clock", device->card, 1800) : value_of("memory_clock", device->card, 6250);
    return SUCCESS;
}

int nvmlDeviceGetPcieThroughput(Device *device, int direction, unsigned *kib)
{
    CHECK(device);
    *kib = direction ? value_of("received", device->card, 300) : value_of("sent", device->card, 20);
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(Device *device, int kind, int counter, unsigned long long *count)
{
    (void)counter;
    CHECK(device);
    *count = value_of(kind ? "uncorrected" : "corrected", device->card, 0);
    return SUCCESS;
}

int nvmlEventSetCreate(void **events) { CHECK(NULL); *events = &seen_xids; return SUCCESS; }
int nvmlEventSetFree(void *events) { (void)events; CHECK(NULL); return SUCCESS; }

int nvmlDeviceRegisterEvents(Device *device, unsigned long long types, void *events)
{
    (void)events;
    CHECK(device);
    return types == 8 ? SUCCESS : INVALID_ARGUMENT; /* critical Xids */
}

int nvmlEventSetWait_v2(void *events, Event *event, unsigned milliseconds)
{
    CHECK(NULL);
    if (events != &seen_xids || milliseconds)
        return INVALID_ARGUMENT; /* the trainer never waits */
    if (seen_xids >= value_of("xids", -1, 0))
        return TIMEOUT;
    seen_xids++;
    *event = (Event){&devices[0][0], 8, value_of("xid", -1, 79), 0, 0};
    return SUCCESS;
}
