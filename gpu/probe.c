#include "gpu/probe.h"
#include "gpu/cuda_driver.h"
#include <errno.h>
#include <string.h>

static int look_at(int ordinal, struct gpu_probe_device *device, struct error *err)
{
	struct cuda_uuid uuid;
	int number, value = 0;
	int rc = CUDA(err, cuDeviceGet, &number, ordinal);

	if (rc == 0) {
		rc = CUDA(
			err, cuDeviceGetName, device->name, (int)sizeof(device->name) - 1, number);
	}
	if (rc == 0) {
		rc = CUDA(err, cuDeviceGetUuid, &uuid, number);
	}
	if (rc) {
		return rc;
	}
	memcpy(device->uuid, uuid.bytes, sizeof(device->uuid));
	/* There is no attribute for it; the name of a slice is "NVIDIA H100 MIG 1g.10gb". */
	device->mig = strstr(device->name, " MIG ") != NULL;
	if (cuda_driver.cuDeviceGetAttribute(&value, CUDA_ATTRIBUTE_POSIX_FDS, number) == CUDA_OK) {
		device->posix_fds = value != 0;
	}
	return 0;
}

static void look_at_peers(struct gpu_probe *probe)
{
	for (int i = 0; i < probe->nprobed; i++) {
		for (int j = 0; j < probe->nprobed; j++) {
			int from, to, reach = 0;

			if (i != j && cuda_driver.cuDeviceGet(&from, i) == CUDA_OK &&
				cuda_driver.cuDeviceGet(&to, j) == CUDA_OK &&
				cuda_driver.cuDeviceCanAccessPeer(&reach, from, to) == CUDA_OK &&
				reach) {
				probe->devices[i].peers |= 1u << j;
			}
		}
	}
}

void gpu_probe(struct gpu_probe *ret_probe)
{
	struct error *err = &ret_probe->driver;
	int rc;

	memset(ret_probe, 0, sizeof(*ret_probe));
	rc = cuda_driver_load(false, err);
	if (rc == 0) {
		rc = CUDA(err, cuDriverGetVersion, &ret_probe->version);
	}
	if (rc == 0) {
		rc = CUDA(err, cuInit, 0);
	}
	if (rc == 0) {
		rc = CUDA(err, cuDeviceGetCount, &ret_probe->ndevices);
	}
	for (int i = 0; rc == 0 && i < ret_probe->ndevices && i < GPU_PROBE_DEVICES; i++) {
		rc = look_at(i, &ret_probe->devices[i], err);
		ret_probe->nprobed += rc == 0;
	}
	if (rc == 0) {
		look_at_peers(ret_probe);
	}
}
