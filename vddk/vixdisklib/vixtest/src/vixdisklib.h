/* The interface of libvixDiskLib as far as vmkeep uses it, for x86-64 Linux, from published facts about its
 * binary interface. Offsets are asserted: what the helper fills by offset, the fake reads by name. */
#ifndef VIXDISKLIB_H
#define VIXDISKLIB_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t VixError;
typedef uint64_t Sectors;
typedef char Bool;
typedef struct Disk *Handle;
typedef struct Conn *Connection;
typedef void LogFn(const char *fmt, va_list args);
typedef void DoneFn(void *data, VixError result);

typedef struct {
	char *vmxSpec, *serverName, *thumbPrint;
	long privateUse;
	int32_t credType;
	union {
		struct { char *userName, *password; } uid;
		struct { char *cookie, *userName, *key; } sessionId;
		void *ticket[3];
	} creds;
	uint32_t port, nfcHostPort;
	char *vimApiVer;
	char reserved[8];
	void *state;
	union {
		struct { char *id, *datastoreMoRef, *ssId; } vStorageObj;
		struct { char *datastoreMoRef, *diskFolder; } datastore; /* 8.0.1 */
	} spec;
	int32_t specType;
} ConnectParams;

_Static_assert(offsetof(ConnectParams, thumbPrint) == 16, "thumbPrint");
_Static_assert(offsetof(ConnectParams, credType) == 32, "credType");
_Static_assert(offsetof(ConnectParams, creds) == 40, "creds");
_Static_assert(offsetof(ConnectParams, port) == 64, "port");
_Static_assert(offsetof(ConnectParams, vimApiVer) == 72, "vimApiVer");
_Static_assert(offsetof(ConnectParams, state) == 88, "state");
_Static_assert(offsetof(ConnectParams, spec) == 96, "spec");
_Static_assert(offsetof(ConnectParams, specType) == 120, "specType");
_Static_assert(sizeof(ConnectParams) == 128, "ConnectParams");

typedef struct {
	uint32_t bios[3], phys[3];
	uint64_t capacity; /* sectors */
	int32_t adapterType, numLinks;
	char *parentFileNameHint, *uuid;
#if MAJOR >= 7
	uint32_t logicalSectorSize, physicalSectorSize;
#endif
} Info;

_Static_assert(offsetof(Info, capacity) == 24, "capacity");
_Static_assert(offsetof(Info, adapterType) == 32, "adapterType");
_Static_assert(offsetof(Info, uuid) == 48, "uuid");
_Static_assert(sizeof(Info) == (MAJOR >= 7 ? 64 : 56), "Info");

typedef struct { uint64_t offset, length; } Block; /* sectors */
typedef struct { uint32_t numBlocks; Block blocks[]; } BlockList;
_Static_assert(offsetof(BlockList, blocks) == 8, "BlockList");

enum {
	UID = 1, SESSIONID = 2,
	FLAG_UNBUFFERED = 1, FLAG_READ_ONLY = 4,
	OK = 0, FAIL = 1, OUT_OF_MEMORY = 2, INVALID_ARG = 3, FILE_NOT_FOUND = 4, NOT_SUPPORTED = 6,
	FILE_READ_ONLY = 11, FILE_ACCESS = 13, FILE_LOCKED = 15, OUT_OF_RANGE = 16007, ASYNC = 25000, MIXED = 26000,
	NO_ACCESS_METHOD = 2300, BUSY_ACCESS = 5,
};

#endif
