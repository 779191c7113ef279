package engine

import (
	"slices"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
)

// quiesceOf is the ladder for vSphere.
func quiesceOf(q plugin.Quiesce) vsphere.Quiesce {
	return vsphere.Quiesce{Best: vsphere.Level(q.Best), Worst: vsphere.Level(q.Worst), Timeout: q.Timeout, VSS: vsphere.VSS(q.VSS)}
}

// quiesce is how a machine is quiesced: as the first rule says that names it, else as the request does.
func (b *backupRun) quiesce(m vsphere.Machine) vsphere.Quiesce {
	q := b.req.Quiesce
	if i := slices.IndexFunc(b.req.QuiesceRules, func(r plugin.QuiesceRule) bool { return m.Named(r.Machine) }); i >= 0 {
		q = b.req.QuiesceRules[i].Quiesce
	}
	q.Timeout = firstOf(q.Timeout, b.op.conn.cfg.Limits.SnapshotTimeout)
	return quiesceOf(q)
}
