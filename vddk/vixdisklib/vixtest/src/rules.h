/* What the control file says, and the rules whose breach ends the process as the real library does. */
#ifndef RULES_H
#define RULES_H

#include <stdatomic.h>
#include "vixdisklib.h"

/* One line "fault CALL key=value... word..." of the control file that fits a call. */
typedef struct {
	int found;
	VixError code;
	int delay;                                     /* ms */
	int drop, flip, partial, die, segv, stuck, panic, sync;
} Fault;

extern char root[];
void find_root(void);
int setting(const char *key, char *value, size_t size); /* "key=value" line of the control file */
Fault fault(const char *call, uint64_t first, uint64_t count);
VixError act(const Fault *f);                    /* delays, holds and ends; then the code */
void event(const char *call, const char *detail); /* a JSON line in the file events, if it exists */
void broken(const char *rule);                   /* tells the panic callback, then aborts */
void say(LogFn *fn, const char *fmt, ...);
int here(void);                                  /* thread id */

extern LogFn *log_fn, *warn_fn, *panic_fn;
#endif
