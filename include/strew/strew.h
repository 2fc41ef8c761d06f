/* Everything of libstrew's public API. */
#ifndef STREW_STREW_H
#define STREW_STREW_H
#include <strew/agent.h>
#include <strew/trainer.h>
#include <strew/types.h>
#endif
