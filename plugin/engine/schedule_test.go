package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vsphere"
)

func TestLanesAreKept(t *testing.T) {
	var machines []vsphere.Machine
	for i := range 60 {
		machines = append(machines, vsphere.Machine{Name: fmt.Sprint(i), HostID: fmt.Sprint("host", i%5), Datastores: []string{fmt.Sprint("ds", i%3)}})
	}
	l := lanesOf(plugin.Limits{Machines: 6, MachinesPerHost: 2, MachinesPerDatastore: 3})
	var mu sync.Mutex
	running := map[string]int{}
	most := map[string]int{}
	calls := make([]int, len(machines))
	count := func(key string, n int) {
		running[key] += n
		most[key] = max(most[key], running[key])
	}
	start := make(chan struct{}) // holds the first ones until as many as may run do
	var once sync.Once
	l.run(t.Context(), machines, func(_ context.Context, i int) {
		m := machines[i]
		mu.Lock()
		calls[i]++
		for _, key := range []string{"all", m.HostID, m.Datastores[0]} {
			count(key, 1)
		}
		if running["all"] == l.total {
			once.Do(func() { close(start) })
		}
		mu.Unlock()
		<-start
		mu.Lock()
		defer mu.Unlock()
		for _, key := range []string{"all", m.HostID, m.Datastores[0]} {
			count(key, -1)
		}
	})
	for i, n := range calls {
		if n != 1 {
			t.Errorf("machine %d ran %d times", i, n)
		}
	}
	if most["all"] != 6 {
		t.Errorf("%d machines ran at once, want 6", most["all"])
	}
	for key, n := range most {
		switch {
		case key[0] == 'h' && n > 2, key[0] == 'd' && n > 3:
			t.Errorf("%d machines ran at once on %s", n, key)
		}
	}
}

func TestCancelledLanesGiveEveryMachineAnOutcome(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var mu sync.Mutex
	seen := 0
	lanesOf(plugin.Limits{}).run(ctx, make([]vsphere.Machine, 9), func(ctx context.Context, _ int) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil {
			seen++
		}
	})
	if seen != 9 {
		t.Errorf("%d of 9 machines got their cancellation", seen)
	}
}

func TestMachinesBeginInTheOrderAskedFor(t *testing.T) {
	disk := func(n int64) []vsphere.Disk { return []vsphere.Disk{{Capacity: n}, {Capacity: n}} }
	all := []vsphere.Machine{{Name: "a", InstanceUUID: "1", Disks: disk(5)}, {Name: "b", InstanceUUID: "2", Disks: disk(9)}, {Name: "c", InstanceUUID: "3", Disks: disk(7)}}
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	newest := map[machineIdentity]*restic.Snapshot{{"vc", "1"}: {Time: day.AddDate(0, 0, 2)}, {"vc", "2"}: {Time: day}}
	for order, want := range map[string]string{"": "abc", "path": "abc", "largest": "bca", "oldest": "cba"} {
		machines := slices.Clone(all)
		if err := arrange(machines, order, newest); err != nil {
			t.Error(err)
		}
		got := ""
		for _, m := range machines {
			got += m.Name
		}
		if got != want {
			t.Errorf("%q: %s, want %s", order, got, want)
		}
	}
	if err := arrange(all, "random", newest); err == nil {
		t.Error("no error")
	}
}
