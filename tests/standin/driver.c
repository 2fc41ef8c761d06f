/* The stand-in driver: devices, contexts, errors. */
#include "tests/standin/driver.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION 13000
#define CONTEXTS_DEEP 16
#define MULTIPROCESSORS 4 /* few, so that what shares a GPU takes its tiles in turn */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct cuda_ctx contexts[DEVICES_MAX];
static int devices;
static atomic_int initialised; /* the process that was; a fork has to begin anew, and cannot */

static __thread struct cuda_ctx *stack[CONTEXTS_DEEP];
static __thread unsigned depth;

/* Every entry point is there, or this does not link. */
#define ENTRY(name, symbol, parameters) (const void *)symbol,
__attribute__((used)) static const void *const entries[] = {CUDA_CALLS(ENTRY) EXTRA_CALLS(ENTRY)};
#undef ENTRY

unsigned driver_enter(const char *call, struct standin_cell *_Atomic *cell)
{
	struct fault fault;

	if (atomic_load(&initialised) != (int)getpid()) {
		return NOT_INITIALIZED;
	}
	fault = standin_enter(call, cell);
	if (fault.kind == FAULT_STICKY && depth) {
		driver_break(stack[depth - 1], fault.argument);
	}
	return fault.kind == FAULT_NONE ? CUDA_OK : fault.argument;
}

unsigned driver_enter_ctx(const char *call, struct standin_cell *_Atomic *cell,
	struct cuda_ctx **ret_ctx, struct fault *ret_fault)
{
	struct cuda_ctx *ctx = depth ? stack[depth - 1] : NULL;

	if (atomic_load(&initialised) != (int)getpid()) {
		return NOT_INITIALIZED;
	}
	*ret_fault = standin_enter(call, cell);
	if (ret_fault->kind == FAULT_FAIL) {
		return ret_fault->argument;
	}
	if (!ctx || !ctx->retained) {
		return CUDA_INVALID_CONTEXT;
	}
	if (ret_fault->kind == FAULT_STICKY) {
		driver_break(ctx, ret_fault->argument);
	}
	*ret_ctx = ctx;
	return atomic_load(&ctx->broken);
}

void driver_break(struct cuda_ctx *ctx, unsigned code)
{
	unsigned whole = CUDA_OK;

	atomic_compare_exchange_strong(&ctx->broken, &whole, code);
}

int driver_devices(void)
{
	return devices;
}

struct cuda_ctx *driver_ctx(int device)
{
	return device >= 0 && device < devices ? &contexts[device] : NULL;
}

/* Two GPUs; one reaches itself in any case. */
bool driver_peers(int device, int other)
{
	const char *set = getenv("STANDIN_PEERS");
	char pair[8];

	if (!set || device == other) {
		return true;
	}
	snprintf(pair, sizeof(pair), "%d-%d", device < other ? device : other,
		device < other ? other : device);
	return strstr(set, pair) != NULL;
}

static void list_devices(void)
{
	const char *count = getenv("STANDIN_DEVICES");
	int n = count ? atoi(count) : 1;

	devices = n < 0 ? 0 : n > DEVICES_MAX ? DEVICES_MAX : n;
	for (int i = 0; i < devices; i++) {
		contexts[i].device = i;
	}
}

unsigned cuInit(unsigned flags)
{
	static struct standin_cell *_Atomic cell;
	struct fault fault = standin_enter("cuInit", &cell);

	if (fault.kind != FAULT_NONE) {
		return fault.argument;
	}
	if (flags) {
		return CUDA_INVALID_VALUE;
	}
	pthread_mutex_lock(&lock);
	if (!atomic_load(&initialised)) {
		list_devices();
		atomic_store(&initialised, (int)getpid());
	}
	pthread_mutex_unlock(&lock);
	if (atomic_load(&initialised) != (int)getpid()) {
		return NOT_INITIALIZED;
	}
	return devices ? CUDA_OK : CUDA_NO_DEVICE;
}

unsigned cuDriverGetVersion(int *version)
{
	static struct standin_cell *_Atomic cell;
	struct fault fault = standin_enter("cuDriverGetVersion", &cell);

	*version = VERSION;
	return fault.kind == FAULT_NONE ? CUDA_OK : fault.argument;
}

static const struct {
	unsigned code;
	const char *name, *text;
} errors[] = {
	{CUDA_OK, "CUDA_SUCCESS", "no error"},
	{CUDA_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
	{CUDA_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
	{NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
	{CUDA_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
	{INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
	{INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
	{CUDA_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
	{CUDA_ALREADY_MAPPED, "CUDA_ERROR_ALREADY_MAPPED", "resource already mapped"},
	{PEER_UNSUPPORTED, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
		"peer access is not supported between these two devices"},
	{INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
	{NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
	{CUDA_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
	{CUDA_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS",
		"an illegal memory access was encountered"},
	{PEER_ENABLED, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
	{CUDA_HOST_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
		"part or all of the requested memory range is already mapped"},
	{HOST_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
		"pointer does not correspond to a registered memory region"},
	{CUDA_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
	{CUDA_NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
	{CUDA_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};

static unsigned find_error(unsigned code, const char **ret_name, const char **ret_text)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		if (errors[i].code == code) {
			*ret_name = errors[i].name;
			*ret_text = errors[i].text;
			return CUDA_OK;
		}
	}
	*ret_name = *ret_text = NULL;
	return CUDA_INVALID_VALUE;
}

unsigned cuGetErrorName(unsigned code, const char **ret_name)
{
	const char *text;

	return find_error(code, ret_name, &text);
}

unsigned cuGetErrorString(unsigned code, const char **ret_text)
{
	const char *name;

	return find_error(code, &name, ret_text);
}

unsigned cuDeviceGetCount(int *ret_count)
{
	ENTER(cuDeviceGetCount);
	*ret_count = devices;
	return CUDA_OK;
}

unsigned cuDeviceGet(int *ret_device, int ordinal)
{
	ENTER(cuDeviceGet);
	if (!driver_ctx(ordinal)) {
		return INVALID_DEVICE;
	}
	*ret_device = ordinal;
	return CUDA_OK;
}

unsigned cuDeviceGetName(char *name, int len, int device)
{
	ENTER(cuDeviceGetName);
	if (!driver_ctx(device)) {
		return INVALID_DEVICE;
	}
	snprintf(name, (size_t)len, "stand-in %d", device);
	return CUDA_OK;
}

/* The same in every process; the machine is part of it no more than of a real one's. */
unsigned cuDeviceGetUuid_v2(struct cuda_uuid *ret_uuid, int device)
{
	ENTER(cuDeviceGetUuid);
	if (!driver_ctx(device)) {
		return INVALID_DEVICE;
	}
	memcpy(ret_uuid->bytes, "strew stand-in ", sizeof(ret_uuid->bytes));
	ret_uuid->bytes[15] = (char)('0' + device);
	return CUDA_OK;
}

unsigned cuDeviceGetAttribute(int *ret_value, unsigned attribute, int device)
{
	ENTER(cuDeviceGetAttribute);
	if (!driver_ctx(device)) {
		return INVALID_DEVICE;
	}
	switch (attribute) {
	case CUDA_ATTRIBUTE_MULTIPROCESSORS:
		*ret_value = MULTIPROCESSORS;
		return CUDA_OK;
	case CUDA_ATTRIBUTE_READ_ONLY_REGISTER:
		*ret_value = 1;
		return CUDA_OK;
	default:
		return CUDA_INVALID_VALUE;
	}
}

unsigned cuDeviceCanAccessPeer(int *ret_can, int device, int peer)
{
	ENTER(cuDeviceCanAccessPeer);
	if (!driver_ctx(device) || !driver_ctx(peer)) {
		return INVALID_DEVICE;
	}
	*ret_can = device != peer && driver_peers(device, peer);
	return CUDA_OK;
}

unsigned cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags)
{
	struct cuda_ctx *ctx = driver_ctx(device);

	ENTER(cuDevicePrimaryCtxSetFlags);
	if (!ctx) {
		return INVALID_DEVICE;
	}
	ctx->flags = flags;
	return CUDA_OK;
}

unsigned cuDevicePrimaryCtxRetain(struct cuda_ctx **ret_ctx, int device)
{
	struct cuda_ctx *ctx = driver_ctx(device);

	ENTER(cuDevicePrimaryCtxRetain);
	if (!ctx) {
		return INVALID_DEVICE;
	}
	if (atomic_load(&ctx->broken)) {
		return atomic_load(&ctx->broken);
	}
	pthread_mutex_lock(&lock);
	ctx->retained++;
	pthread_mutex_unlock(&lock);
	COUNT(contexts, 1);
	*ret_ctx = ctx;
	return CUDA_OK;
}

unsigned cuDevicePrimaryCtxRelease_v2(int device)
{
	struct cuda_ctx *ctx = driver_ctx(device);
	unsigned result = CUDA_OK;

	ENTER(cuDevicePrimaryCtxRelease);
	if (!ctx) {
		return INVALID_DEVICE;
	}
	pthread_mutex_lock(&lock);
	if (ctx->retained) {
		ctx->retained--;
		COUNT(contexts, -1);
	} else {
		result = CUDA_INVALID_CONTEXT;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

unsigned cuCtxSetCurrent(struct cuda_ctx *ctx)
{
	ENTER(cuCtxSetCurrent);
	if (ctx && !ctx->retained) {
		return CUDA_INVALID_CONTEXT;
	}
	if (!ctx) {
		depth -= depth > 0;
		return CUDA_OK;
	}
	depth += depth == 0;
	stack[depth - 1] = ctx;
	return CUDA_OK;
}

unsigned cuCtxPushCurrent_v2(struct cuda_ctx *ctx)
{
	ENTER(cuCtxPushCurrent);
	if (!ctx || !ctx->retained || depth == CONTEXTS_DEEP) {
		return CUDA_INVALID_CONTEXT;
	}
	stack[depth++] = ctx;
	return CUDA_OK;
}

unsigned cuCtxPopCurrent_v2(struct cuda_ctx **ret_ctx)
{
	ENTER(cuCtxPopCurrent);
	if (!depth) {
		return CUDA_INVALID_CONTEXT;
	}
	*ret_ctx = stack[--depth];
	return CUDA_OK;
}

unsigned cuCtxEnablePeerAccess(struct cuda_ctx *peer, unsigned flags)
{
	ENTER_CTX(cuCtxEnablePeerAccess);
	if (flags || !peer || peer == ctx) {
		return CUDA_INVALID_VALUE;
	}
	if (!driver_peers(ctx->device, peer->device)) {
		return PEER_UNSUPPORTED;
	}
	if (ctx->peers[peer->device]) {
		return PEER_ENABLED;
	}
	ctx->peers[peer->device] = true;
	return CUDA_OK;
}
