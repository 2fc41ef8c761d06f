/* What catchup.c, which carries it out, asks of catch_choice.c: who takes what from whom. */
#ifndef BROKER_CATCHUP_H
#define BROKER_CATCHUP_H

#include "broker/server.h"

/* The version committed last. 0: none, or a lead that is gone may have committed another one. */
uint64_t catch_version(struct server *server, const char *model);
/* Has the worker held no version, as far as it knows? What was STALE when it registered is not
 * new, also at version 0. */
bool catch_member_is_fresh(const struct team *team, uint32_t member);
bool catch_is_fresh(const struct team *team); /* all its members */
/* Is it to catch up, if there is somebody? */
bool catch_wanted(struct server *server, const struct team *team);
/* Its live memory is that version, whole, and nobody writes to it. */
bool catch_holds(const struct team *team, uint64_t version);
/* One that holds the version, and was not tried in vain; NULL: there is none. */
struct team *catch_sibling(struct server *server, const struct team *team, uint64_t version);
/* From now on what it is catching up from counts as tried: for this crew and version. */
void catch_note_tried(struct team *team);

#endif
