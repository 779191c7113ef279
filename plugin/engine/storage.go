package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// How an operation reaches the repository: opened anew by each, and closed before the operation ends.

// locationForms is how the location of a repository is written.
const locationForms = "restic's forms: /path, rest:URL, s3:URL, sftp:user@host:/path, rclone:remote:path"

// repository opens the configured repository and its storage. The caller closes both.
func (op *operation) repository(ctx context.Context) (*repo.Repository, backend.Backend, error) {
	if missing := noRepositoryIn(op.conn.cfg); missing != nil {
		return nil, nil, missing
	}
	rc := op.conn.cfg.Repository
	where, err := location.Parse(rc.Location)
	if err != nil {
		return nil, nil, invalid("repository.location", err.Error(), "use one of "+locationForms)
	}
	be, err := location.Open(ctx, where, op.storage())
	if err != nil {
		return nil, nil, noRepository(err)
	}
	r, err := repo.Open(ctx, be, repo.OpenOptions{
		Password: rc.Password, Compression: restic.Compression(rc.Compression), PackSize: rc.PackSize << 20, CacheDir: rc.CacheDir, CacheSize: rc.CacheSize,
		LockWait: rc.LockWait, NoLock: rc.NoLock,
	})
	if err != nil {
		return nil, nil, errors.Join(err, be.Close())
	}
	return r, be, nil
}

// storage is what the configuration says of the storage service. While it does not answer, the host is told: nobody else
// would know why nothing happens.
func (op *operation) storage() location.Settings {
	rc := op.conn.cfg.Repository
	return location.Settings{Env: op.conn.lookup, Options: rc.Options, Upload: rc.LimitUpload, Download: rc.LimitDownload, Retry: backend.Policy{
		Notify: func(what string, err error, pause time.Duration) {
			const summary = "the repository's storage does not answer, trying again"
			if op.out.emit == nil {
				op.log.Error(summary, "what", what, "error", err, "in", pause.Round(time.Millisecond).String())
				return
			}
			scope{out: op.out}.tell(warning(plugin.CodeRepository, summary, fmt.Sprintf("%s: %v; again in %s", what, err, pause.Round(time.Millisecond)),
				"check location, credentials and network, or interrupt"))
		},
	}}
}

// noRepository makes a place that is not there a missing repository.
func noRepository(err error) error {
	if errors.Is(err, backend.ErrNotExist) {
		return fmt.Errorf("%w: %w", repo.ErrNoRepository, err)
	}
	return err
}

// withRepository opens the repository for the time of fn.
func (op *operation) withRepository(ctx context.Context, fn func(*repo.Repository) error) (err error) {
	r, be, err := op.repository(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if e := errors.Join(r.Close(), be.Close()); err == nil && e != nil {
			err = fmt.Errorf("close the repository: %w", e)
		}
	}()
	return fn(r)
}
