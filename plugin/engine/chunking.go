package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/vmkeep/vmkeep/chunker"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Where disks are cut into chunks. All points of a repository should be cut alike, or their chunks do not deduplicate; restic's
// config has no place to say how. So a point says it in its manifest, and who is not told otherwise goes by the newest point.

// chunking is a rule to cut by.
type chunking struct {
	name   string // in configurations and manifests
	cutter func(chunker.Pol) (*chunker.Cutter, error)
}

// resticChunking is the rule of manifests that name none.
const resticChunking = "restic"

// alignedChunk is the length of chunks under the rule "fixed", in bytes. No other length has the zero chunk that restic knows.
const alignedChunk = restic.ZeroChunkSize

// chunkings are all rules. What a name means never changes, for points bear it.
func chunkings() []chunking {
	scaled := func(halvings int) func(chunker.Pol) (*chunker.Cutter, error) {
		return func(pol chunker.Pol) (*chunker.Cutter, error) { return chunker.Scaled(pol, halvings) }
	}
	return []chunking{
		{resticChunking, chunker.New},
		{"restic/2", scaled(1)},
		{"restic/4", scaled(2)},
		{"fixed", func(chunker.Pol) (*chunker.Cutter, error) { return chunker.Fixed(alignedChunk) }},
	}
}

func chunkingNames() (names []string) {
	for _, c := range chunkings() {
		names = append(names, c.name)
	}
	return names
}

// chunkingNamed finds a rule; false when this program does not know it.
func chunkingNamed(name string) (chunking, bool) {
	all := chunkings()
	i := slices.IndexFunc(all, func(c chunking) bool { return c.name == name })
	if i < 0 {
		return chunking{}, false
	}
	return all[i], true
}

// chooseChunking settles how the points of a backup are cut: as the configuration says, else as the newest point that can be
// read, whichever machine it is of, else as restic does.
func (b *backupRun) chooseChunking(ctx context.Context) error {
	name := b.op.conn.cfg.Repository.Chunking
	if name == "" {
		var err error
		if name, err = newestChunking(ctx, b.repo, b.previous); err != nil {
			return err
		}
	}
	rule, ok := chunkingNamed(name)
	if !ok {
		return &plugin.Error{Code: plugin.CodeUnsupported, Object: "repository.chunking", Summary: fmt.Sprintf("the newest point's chunks were cut by a rule %q that this vmkeep does not know", name),
			Remedy: "use the vmkeep that made it, or a newer one; or set repository.chunking, which reads every machine in full once"}
	}
	b.chunking = rule.name
	var err error
	b.cutter, err = rule.cutter(chunker.Pol(b.repo.Config().Polynomial))
	return err
}

// newestChunking is the rule of the newest point; restic's where there is none.
func newestChunking(ctx context.Context, r *repo.Repository, points map[machineIdentity]*restic.Snapshot) (string, error) {
	newestFirst := slices.SortedFunc(maps.Values(points), func(a, b *restic.Snapshot) int { return b.Time.Compare(a.Time) })
	for _, s := range newestFirst {
		p, err := loadPoint(ctx, r, s)
		if err == nil {
			return p.manifest.chunking(), nil
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if storageFailed(err) { // another rule than theirs would store everything anew
			return "", err
		}
	}
	return resticChunking, nil
}

// chunking is the rule by which the point's chunks were cut.
func (m *manifest) chunking() string { return cmp.Or(m.Chunking, resticChunking) }

// tellChunking says why a machine that could be read incrementally is not.
func (j *machineBackup) tellChunking(prev *loadedPoint) {
	if prev == nil || prev.manifest == nil || j.run.req.Full || prev.manifest.chunking() == j.run.chunking {
		return
	}
	j.scope.info("", "chunks are cut by another rule from this point on: the machine is read in full once", prev.manifest.chunking()+" -> "+j.run.chunking)
}
