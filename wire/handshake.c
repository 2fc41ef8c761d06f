#include "wire/handshake.h"
#include "base/util.h"
#include "wire/nccl.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_nccl(const struct msg_join *join, const struct msg_join *lead, struct error *err)
{
	char theirs[24], ours[24];

	if (join->nccl == lead->nccl) {
		return 0;
	}
	return error_set(err, -EINVAL,
		"broker %s has NCCL %s, the lead has %s: set STREW_NCCL to one library on both",
		join->name, nccl_version_format(theirs, sizeof(theirs), join->nccl),
		nccl_version_format(ours, sizeof(ours), lead->nccl));
}

/* Names are cut, so that the advice fits in a sentence's LIMIT_TEXT_BYTES. */
static int refuse_gpu(const struct msg_join *join, const struct msg_join *other, struct error *err)
{
	return error_set(err, -EEXIST,
		"brokers %.31s and %.31s are on one GPU of one host, which NCCL refuses: use "
		"another --device, or set NCCL_HOSTID to differing values if they stand for two "
		"nodes",
		join->name, other->name);
}

int admit_check(const struct msg_join *join, const struct msg_join *members, size_t nmembers,
	struct error *err)
{
	static const uint8_t none[UUID_BYTES];
	const struct msg_join *lead = &members[0];
	int rc;

	if (join->protocol != lead->protocol) {
		return error_set(err, -EPROTO, "broker %s speaks protocol %u, the lead %u",
			join->name, join->protocol, lead->protocol);
	}
	if (strcmp(join->backend, lead->backend) != 0) {
		return error_set(err, -EINVAL,
			"broker %s has the %s backend, the lead the %s one: start both with one "
			"--backend",
			join->name, join->backend, lead->backend);
	}
	rc = check_nccl(join, lead, err);
	if (rc) {
		return rc;
	}
	if (join->slot_bytes < LIMIT_SLOT_BYTES_MIN || join->slot_bytes > LIMIT_SLOT_BYTES_MAX) {
		return error_set(err, -EINVAL, "broker %s offers slots of %llu bytes", join->name,
			(unsigned long long)join->slot_bytes);
	}
	for (size_t i = 0; i < nmembers; i++) {
		if (members[i].broker_id == join->broker_id) {
			return error_set(err, -EEXIST, "broker %s has joined already", join->name);
		}
		if (memcmp(join->uuid, none, sizeof(none)) != 0 &&
			memcmp(join->uuid, members[i].uuid, sizeof(none)) == 0 &&
			join->host_id == members[i].host_id) {
			return refuse_gpu(join, &members[i], err);
		}
	}
	if (nmembers >= LIMIT_BROKERS) {
		return error_set(err, -E2BIG, "%u brokers have joined already", LIMIT_BROKERS);
	}
	return 0;
}

/* http://www.isthe.com/chongo/tech/comp/fnv/ */
static uint64_t fnv1a(const char *bytes, size_t n)
{
	uint64_t hash = 0xcbf29ce484222325u;

	for (size_t i = 0; i < n; i++) {
		hash = (hash ^ (uint8_t)bytes[i]) * 0x100000001b3u;
	}
	return hash;
}

uint64_t host_id_compute(void)
{
	const char *set = getenv("NCCL_HOSTID");
	char boot[64];
	size_t n = 0;
	FILE *file;

	if (set && *set) {
		return fnv1a(set, strlen(set));
	}
	file = fopen("/proc/sys/kernel/random/boot_id", "re");
	if (file) {
		n = fread(boot, 1, sizeof(boot), file);
		fclose(file);
	}
	return fnv1a(boot, n);
}
