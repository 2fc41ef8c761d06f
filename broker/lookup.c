#include "broker/lookup.h"
#include "base/thread.h"
#include "base/util.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Shared with its thread: the last one to let go frees it. */
struct lookup {
	atomic_int users;
	atomic_bool ended;
	int fd;
	bool keyed;
	int rc;
	struct socket_place place;
	struct error err;
	char address[];
};

static void put(struct lookup *lookup)
{
	if (atomic_fetch_sub(&lookup->users, 1) == 1) {
		close(lookup->fd);
		free(lookup);
	}
}

static void *lookup_main(void *data)
{
	struct lookup *lookup = data;
	uint64_t one = 1;

	lookup->rc = socket_look_up(lookup->address, lookup->keyed, &lookup->place, &lookup->err);
	atomic_store(&lookup->ended, true);
	if (write(lookup->fd, &one, sizeof(one)) < 0) {
		/* The counter of an eventfd that was written once is never full. */
	}
	put(lookup);
	return NULL;
}

int lookup_create(const char *address, bool keyed, struct lookup **ret_lookup)
{
	size_t len = strlen(address) + 1;
	struct lookup *lookup = calloc(1, sizeof(*lookup) + len);
	pthread_t thread;
	int rc;

	if (!lookup) {
		return -ENOMEM;
	}
	memcpy(lookup->address, address, len);
	lookup->keyed = keyed;
	atomic_init(&lookup->users, 2);
	lookup->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (lookup->fd < 0) {
		rc = -errno;
		free(lookup);
		return rc;
	}
	rc = thread_start(lookup_main, lookup, &thread);
	if (rc) {
		close(lookup->fd);
		free(lookup);
		return rc;
	}
	pthread_detach(thread);
	*ret_lookup = lookup;
	return 0;
}

int lookup_fd(const struct lookup *lookup)
{
	return lookup->fd;
}

int lookup_result(struct lookup *lookup, struct socket_place *ret_place, struct error *err)
{
	if (!atomic_load(&lookup->ended)) {
		return -EAGAIN;
	}
	if (lookup->rc) {
		*err = lookup->err;
	} else {
		*ret_place = lookup->place;
	}
	return lookup->rc;
}

void lookup_destroy(struct lookup *lookup)
{
	if (lookup) {
		put(lookup);
	}
}
