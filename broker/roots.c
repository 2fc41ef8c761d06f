#include "broker/roots.h"
#include <errno.h>

/* False: it is in no epoch with this lead. */
static bool find_root(const struct server *server, uint64_t broker_id, uint32_t *ret_root)
{
	if (broker_id == server->broker_id) {
		*ret_root = 0;
		return true;
	}
	for (const struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH && member->join.broker_id == broker_id) {
			*ret_root = member->rank;
			return true;
		}
	}
	return false;
}

int roots_find(const struct server *server, const struct publication *publication,
	uint32_t ret_roots[LIMIT_RANKS], struct error *err)
{
	for (uint32_t i = 0; i < publication->nroots; i++) {
		if (!find_root(server, publication->brokers[i], &ret_roots[i])) {
			return error_set(err, -EHOSTUNREACH,
				"trainer rank %u is at a broker that is not in epoch %llu", i,
				(unsigned long long)server->epoch.number);
		}
	}
	return 0;
}

bool roots_take(
	struct server *server, const struct publication *publication, const struct msg_begin *begin)
{
	if (begin->nroots != publication->nroots) {
		return false;
	}
	for (size_t i = 0; i < begin->nroots; i++) {
		if (begin->roots[i] >= server->epoch.ranks ||
			(begin->roots[i] == server->epoch.rank) !=
				(publication->brokers[i] == server->broker_id)) {
			return false;
		}
		server->node.roots[i] = begin->roots[i];
	}
	return true;
}
