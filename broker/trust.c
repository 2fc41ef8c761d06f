#include "broker/trust.h"
#include "base/util.h"
#include "broker/waits.h"
#include <string.h>

#define COSTS_KEPT_OUT 4 /* so many times what it has cost the others */
#define MS_NS 1000000ull

static struct trust_entry key_of(const struct msg_join *who)
{
	static const uint8_t none[UUID_BYTES];
	struct trust_entry key = {.host_id = who->host_id};

	memcpy(key.uuid, who->uuid, sizeof(key.uuid));
	if (memcmp(key.uuid, none, sizeof(none)) == 0) {
		string_copy(key.name, sizeof(key.name), who->name);
	}
	return key;
}

static struct trust_entry *find(struct trust *trust, const struct msg_join *who)
{
	const struct trust_entry key = key_of(who);

	for (size_t i = 0; i < trust->n; i++) {
		struct trust_entry *entry = &trust->entries[i];

		if (entry->host_id == key.host_id &&
			memcmp(entry->uuid, key.uuid, sizeof(key.uuid)) == 0 &&
			strcmp(entry->name, key.name) == 0) {
			return entry;
		}
	}
	return NULL;
}

/* The place of one that may come back first, where there is no other. */
static struct trust_entry *add(struct trust *trust, const struct msg_join *who)
{
	struct trust_entry *place = &trust->entries[0];

	for (size_t i = 1; i < trust->n; i++) {
		place = trust->entries[i].until < place->until ? &trust->entries[i] : place;
	}
	if (trust->n < TRUST_ENTRIES) {
		place = &trust->entries[trust->n++];
	}
	*place = key_of(who);
	return place;
}

void trust_failed(
	struct trust *trust, const struct msg_join *who, bool sure, uint64_t cost_ns, uint64_t now)
{
	struct trust_entry *entry = find(trust, who);
	uint64_t most = waits.blame_max_ms * MS_NS, out;
	unsigned doublings;

	if (!entry) {
		entry = add(trust, who);
	}
	entry->failures++;
	if (!sure && entry->failures == 1) {
		entry->until = now;
		return;
	}
	doublings = entry->failures - (sure ? 1 : 2);
	out = MAX(cost_ns * COSTS_KEPT_OUT, waits.blame_min_ms * MS_NS);
	while (doublings-- && out < most) {
		out *= 2;
	}
	entry->until = now + MIN(out, most);
}

void trust_stands(struct trust *trust, const struct msg_join *who)
{
	struct trust_entry *entry = find(trust, who);

	if (entry) {
		*entry = trust->entries[--trust->n];
	}
}

/* Who stayed away for that long again costs nobody anything worth the name. */
uint64_t trust_until(struct trust *trust, const struct msg_join *who, uint64_t now)
{
	const struct trust_entry *entry = find(trust, who);

	if (entry && now > entry->until + waits.blame_max_ms * MS_NS) {
		trust_stands(trust, who);
		entry = NULL;
	}
	return entry ? entry->until : 0;
}
