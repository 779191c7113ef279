package repo

import (
	"context"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// diskCache keeps files of the repository in a local directory. A nil one keeps nothing.
type diskCache struct{}

func openDiskCache(string, string, int64) (*diskCache, error) { return nil, nil }

func (c *diskCache) get(backend.Handle) ([]byte, bool) { return nil, false }

func (c *diskCache) put(backend.Handle, []byte) {}

// keep removes files of a type that the repository has no more.
func (c *diskCache) keep(restic.FileType, map[restic.ID]int64) {}

func (c *diskCache) slice(context.Context, *Repository, backend.Handle, restic.Blob) ([]byte, bool) {
	return nil, false
}

func (c *diskCache) drop(backend.Handle) {}
