package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vsphere"
)

// lanes bound how many machines are worked on at once: in total, on one ESXi host, and on one datastore. An NFC
// server has 48 MB for all its sessions (VDDK guide, "NFC Session Limits"), and a datastore holds the redo logs
// of every machine that is being backed up.
type lanes struct {
	total, host, datastore int
}

func lanesOf(l plugin.Limits) lanes {
	or := func(n, standard int) int {
		if n > 0 {
			return n
		}
		return standard
	}
	return lanes{total: or(l.Machines, 4), host: or(l.MachinesPerHost, 2), datastore: or(l.MachinesPerDatastore, 4)}
}

// arrange sorts machines, which come by path, in the order in which they shall begin.
func arrange(machines []vsphere.Machine, order string, newest map[machineIdentity]*restic.Snapshot) error {
	switch order {
	case "", "path":
	case "largest": // so that the last to end is not one that began late
		slices.SortStableFunc(machines, func(a, b vsphere.Machine) int { return cmp.Compare(capacityOf(b), capacityOf(a)) })
	case "oldest":
		last := make(map[string]time.Time, len(newest)) // zero: never backed up
		for id, p := range newest {
			if p.Time.After(last[id.instance]) {
				last[id.instance] = p.Time
			}
		}
		slices.SortStableFunc(machines, func(a, b vsphere.Machine) int { return last[a.InstanceUUID].Compare(last[b.InstanceUUID]) })
	default:
		return invalid("order", fmt.Sprintf("unknown order %q", order), "use path, largest or oldest")
	}
	return nil
}

func capacityOf(m vsphere.Machine) (n int64) {
	for _, d := range m.Disks {
		n += d.Capacity
	}
	return n
}

// run calls fn for the index of each machine, in the given order as far as the lanes allow, and returns when all
// calls did. When ctx ends it still calls fn for the rest, which will fail fast: every machine gets an outcome.
func (l lanes) run(ctx context.Context, machines []vsphere.Machine, fn func(context.Context, int)) {
	var (
		mu      sync.Mutex
		freed   = sync.NewCond(&mu)
		wg      sync.WaitGroup
		running int
		hosts   = map[string]int{}
		stores  = map[string]int{}
		waiting = make([]int, len(machines))
	)
	for i := range waiting {
		waiting[i] = i
	}
	fits := func(m vsphere.Machine) bool {
		if running >= l.total || hosts[m.HostID] >= l.host {
			return false
		}
		for _, d := range m.Datastores {
			if stores[d] >= l.datastore {
				return false
			}
		}
		return true
	}
	count := func(m vsphere.Machine, n int) {
		running += n
		hosts[m.HostID] += n
		for _, d := range m.Datastores {
			stores[d] += n
		}
	}

	mu.Lock()
	defer wg.Wait()
	defer mu.Unlock()
	for len(waiting) > 0 {
		next := -1
		for at, i := range waiting {
			if fits(machines[i]) {
				next = at
				break
			}
		}
		if next < 0 {
			freed.Wait()
			continue
		}
		i := waiting[next]
		waiting = append(waiting[:next:next], waiting[next+1:]...)
		count(machines[i], 1)
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				count(machines[i], -1)
				freed.Broadcast()
			}()
			fn(ctx, i)
		}()
	}
}

// cutShort is what ctx has ended with, if that kept a machine from being done.
func cutShort[R any](ctx context.Context, results []R, failed func(R) *plugin.Error) error {
	for _, r := range results {
		if e := failed(r); e != nil && e.Code == plugin.CodeCancelled {
			return context.Cause(ctx)
		}
	}
	return nil
}
