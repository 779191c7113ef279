package vsphere

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func TestEnableCBT(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "plain"}, {Name: "on", Tracking: true}, {Name: "old", Hardware: 4}, {Name: "gold", Template: true}, {Name: "snapped"}, {Name: "late"}, {Name: "off", Off: true}}})
	_, err := w.lab.Machine("snapped").Snapshot("theirs")
	must(t, err)
	for _, c := range []struct {
		name string
		did  bool
		err  error
		says string
	}{
		{"plain", true, nil, ""}, {"plain", false, nil, ""}, {"off", true, nil, ""}, {"on", false, nil, ""},
		{"old", false, ErrChangeTracking, "hardware version"}, {"gold", false, ErrChangeTracking, "template"}, {"snapped", false, ErrChangeTracking, "1 snapshots"},
	} {
		did, err := w.find(c.name).EnableCBT(w.ctx, w.begin())
		if did != c.did || !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v %v", c.name, did, err)
		}
		if on := w.state(w.find(c.name)).CBT; on != (c.err == nil) {
			t.Errorf("%s: tracking is %v", c.name, on)
		}
	}
	// A snapshot between the check and the switch: it is taken back.
	m := w.lab.Machine("late")
	w.lab.Inject(lab.Fault{Method: "ReconfigVM_Task", Do: lab.Hook(func() {
		if _, err := m.Snapshot("theirs"); err != nil {
			t.Error(err)
		}
	})})
	must(t, m.SetFaults(lab.MachineFaults{TrackSnapshots: true}))
	if _, err := w.find("late").EnableCBT(w.ctx, w.begin()); !errors.Is(err, ErrChangeTracking) {
		t.Errorf("late: %v", err)
	}
	if w.state(w.find("late")).CBT {
		t.Error("tracking stays on under a snapshot")
	}
}

func TestFirstSnapshotAfterEnablingTracks(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
		_, err := s.Allocated(ctx, s.Disks()[0])
		var ct *ChangeTrackingError
		if !errors.As(err, &ct) || ct.Reason != ReasonOff {
			t.Errorf("before: %v", err)
		}
		return nil
	})
	must(t, err)
	_, err = v.EnableCBT(w.ctx, w.begin())
	must(t, err)
	_, err = v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
		if _, err := ParseChangeID(string(s.Disks()[0].ChangeID)); err != nil {
			t.Error(err)
		}
		return nil
	})
	must(t, err)
}

// changeIDs snapshots the machine and returns its disks' change ids by key.
func (w *world) changeIDs(v *VM) map[int32]ChangeID {
	w.Helper()
	ids := make(map[int32]ChangeID)
	_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(_ context.Context, s *Snapshot) error {
		for _, d := range s.Disks() {
			ids[d.Key] = d.ChangeID
		}
		return nil
	})
	must(w, err)
	return ids
}

func TestResetCBTRestartsTracking(t *testing.T) {
	for _, off := range []bool{false, true} {
		t.Run(fmt.Sprint("off ", off), func(t *testing.T) {
			w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true, Off: off}}})
			v := w.find("web")
			key := v.Machine().Disks[0].Key
			before := w.changeIDs(v)[key]
			must(t, v.ResetCBT(w.ctx, w.begin()))
			after := w.changeIDs(v)[key]
			if before.Tracking() == after.Tracking() || after == "" {
				t.Errorf("%s then %s", before, after)
			}
			w.clean("web")
		})
	}
}

func TestResetCBTEndsSwitchedOn(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true}}})
	v := w.find("web")
	must(t, w.lab.Machine("web").SetFaults(lab.MachineFaults{Snapshot: &types.SnapshotFault{}}))
	if err := v.ResetCBT(w.ctx, w.begin()); !errors.Is(err, ErrSnapshot) {
		t.Errorf("error %v", err)
	}
	if !w.state(v).CBT {
		t.Error("tracking stays off")
	}
	w.clean("web")
}

// What Changed says, applied to the old content, is the new content: over random writes and pages of any size.
func TestChangedIsComplete(t *testing.T) {
	for _, areas := range []int{1, 2, 3, 2000} {
		t.Run(fmt.Sprint(areas, " areas"), func(t *testing.T) {
			w := start(t, lab.Options{MaxAreas: areas, Machines: []lab.Machine{{Name: "web", Tracking: true, Disks: []lab.Disk{{Size: 8*mib + 512}, {Size: 3 * mib, Controller: "nvme"}}}}})
			v := w.find("web")
			r := rand.New(rand.NewPCG(1, uint64(areas)))
			old := make(map[int32][]byte)
			since := make(map[int32]ChangeID)
			for round := range 6 {
				for _, d := range v.Machine().Disks {
					for range r.IntN(8) {
						off := r.Int64N(d.Capacity/512) * 512
						w.guestWrite("web", d.Key, off, min(d.Capacity-off, 512*(1+r.Int64N(300))))
					}
				}
				_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
					for _, d := range s.Disks() {
						now, err := w.lab.ReadLink(d.Path)
						must(t, err)
						var set extent.Set
						if round == 0 {
							set, err = s.Allocated(ctx, d)
							old[d.Key] = make([]byte, d.Capacity)
						} else {
							set, err = s.Changed(ctx, d, since[d.Key])
						}
						must(t, err)
						for _, e := range set {
							copy(old[d.Key][e.Off:e.End()], now[e.Off:e.End()])
						}
						if !bytes.Equal(old[d.Key], now) {
							t.Errorf("round %d, %s: %v misses changes", round, d.Name, set)
						}
						since[d.Key] = d.ChangeID
						if same, err := s.Changed(ctx, d, d.ChangeID); err != nil || same.Bytes() != 0 {
							t.Errorf("changes since now: %v %v", same, err)
						}
					}
					return nil
				})
				must(t, err)
			}
		})
	}
}

// Each reason for which a whole read is due has its name.
func TestChangedReasons(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true, Disks: []lab.Disk{{Size: 8 * mib}, {Size: mib, Mode: "independent_persistent"}}}}})
	v := w.find("web")
	m := w.lab.Machine("web")
	key := v.Machine().Disks[0].Key
	old := w.changeIDs(v)[key]
	for _, c := range []struct {
		name   string
		query  func(types.QueryChangedDiskAreas, *types.DiskChangeInfo) types.BaseMethodFault
		since  ChangeID
		disk   int
		reason string
	}{
		{name: "fine", since: old},
		{name: "malformed", since: "nonsense", reason: ReasonMalformed},
		{name: "no sequence", since: ChangeID(old.Tracking() + "/x"), reason: ReasonMalformed},
		{name: "another tracking", since: "52 00 00 00 00 00 00 00-00 00 00 00 00 00 00 00/1", reason: ReasonRestarted},
		{name: "from the future", since: ChangeID(old.Tracking() + "/999999"), reason: ReasonRewound},
		{name: "independent", since: old, disk: 1, reason: ReasonUntracked},
		{name: "switched off", since: old, query: lab.FailQuery("vim.hostd.vmsvc.cbt.noTrack"), reason: ReasonOff},
		{name: "epoch lost", since: old, query: lab.FailQuery("vim.hostd.vmsvc.cbt.noEpoch"), reason: ReasonRestarted},
		{name: "epoch lost, all", since: "*", query: lab.FailQuery("vim.hostd.vmsvc.cbt.noEpoch"), reason: ReasonNoAllocations},
		{name: "ctk damaged", since: old, query: lab.FailQuery("vim.hostd.vmsvc.cbt.cannotGetChanges"), reason: ReasonRestarted},
		{name: "anything else", since: old, query: lab.FailQuery("something.new"), reason: ReasonRefused},
		{name: "no progress", since: old, query: lab.ShortLength(1 << 40), reason: ReasonInconsistent},
		{name: "wrong echo", since: old, query: func(_ types.QueryChangedDiskAreas, i *types.DiskChangeInfo) types.BaseMethodFault {
			i.StartOffset += 512
			return nil
		}, reason: ReasonInconsistent},
		{name: "area outside", since: old, query: func(_ types.QueryChangedDiskAreas, i *types.DiskChangeInfo) types.BaseMethodFault {
			i.ChangedArea = append(i.ChangedArea, types.DiskChangeExtent{Start: i.StartOffset + i.Length, Length: 512})
			return nil
		}, reason: ReasonInconsistent},
		{name: "area negative", since: old, query: func(_ types.QueryChangedDiskAreas, i *types.DiskChangeInfo) types.BaseMethodFault {
			i.ChangedArea = append(i.ChangedArea, types.DiskChangeExtent{Start: i.StartOffset, Length: -1})
			return nil
		}, reason: ReasonInconsistent},
		{name: "last area exceeds the disk", since: old, query: func(_ types.QueryChangedDiskAreas, i *types.DiskChangeInfo) types.BaseMethodFault {
			i.ChangedArea = append(i.ChangedArea, types.DiskChangeExtent{Start: 8*mib - 512, Length: 64 << 10})
			return nil
		}},
		{name: "answer exceeds the disk", since: old, query: func(_ types.QueryChangedDiskAreas, i *types.DiskChangeInfo) types.BaseMethodFault {
			i.Length += 64 << 10
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			must(t, m.SetFaults(lab.MachineFaults{Query: c.query}))
			_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
				var set extent.Set
				var err error
				if c.since == "*" {
					set, err = s.Allocated(ctx, s.Disks()[c.disk])
				} else {
					set, err = s.Changed(ctx, s.Disks()[c.disk], c.since)
				}
				if c.reason == "" {
					must(t, err)
					if set.Subtract(extent.Of(extent.Extent{Len: 8 * mib})).Bytes() != 0 {
						t.Errorf("%v exceeds the disk", set)
					}
					return nil
				}
				var ct *ChangeTrackingError
				if !errors.As(err, &ct) || ct.Reason != c.reason || !errors.Is(err, ErrChangeTracking) {
					t.Errorf("error %v, want %s", err, c.reason)
				}
				return nil
			})
			must(t, err)
		})
	}
}

// What says nothing about the disk is not a reason to read it all.
func TestFailedQueryIsNoReason(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true}}})
	v := w.find("web")
	for name, do := range map[string]lab.Effect{"no right": lab.Fail(&types.NoPermission{PrivilegeId: "System.Read"}), "gone": lab.Fail(&types.ManagedObjectNotFound{})} {
		_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
			defer w.lab.Inject(lab.Fault{Method: "QueryChangedDiskAreas", Do: do})()
			_, err := s.Allocated(ctx, s.Disks()[0])
			if err == nil || errors.Is(err, ErrChangeTracking) {
				t.Errorf("%s: %v", name, err)
			}
			return nil
		})
		must(t, err)
	}
}

func TestPowerCutRestartsTracking(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true}}})
	v := w.find("web")
	key := v.Machine().Disks[0].Key
	old := w.changeIDs(v)[key]
	must(t, w.lab.Machine("web").PowerCut())
	_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
		_, err := s.Changed(ctx, s.Disks()[0], old)
		var ct *ChangeTrackingError
		if !errors.As(err, &ct) || ct.Reason != ReasonRestarted {
			t.Errorf("error %v", err)
		}
		return nil
	})
	must(t, err)
}

func TestChangeIDs(t *testing.T) {
	id, err := ParseChangeID("52 2d 7b 8f ac 61 51 cc-77 4c 7b ec 91 50 bb 7b/12")
	must(t, err)
	if n, ok := id.Sequence(); !ok || n != 12 || id.Tracking() != "52 2d 7b 8f ac 61 51 cc-77 4c 7b ec 91 50 bb 7b" {
		t.Errorf("%s: %s %d", id, id.Tracking(), n)
	}
	for _, s := range []string{"", "/", "/1", "52", "52/", "52/x", "52/-1", "52/1/2"} {
		if _, err := ParseChangeID(s); err == nil {
			t.Errorf("%q passes", s)
		}
	}
}

func TestRevertIsSeen(t *testing.T) {
	w := start(t, machines("web"))
	v, m := w.find("web"), w.lab.Machine("web")
	freeze := func() (f Freeze) {
		var err error
		f.Begun, err = w.c.Now(w.ctx)
		must(t, err)
		_, err = v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, _ *Snapshot) error {
			f.Done, err = w.c.Now(ctx)
			return err
		})
		must(t, err)
		return f
	}
	first := freeze()
	if yes, err := v.Reverted(w.ctx, first); err != nil || yes {
		t.Errorf("before: %v %v", yes, err)
	}
	w.lab.ExpireSessions() // takes collectors along
	made, err := m.Snapshot("foreign")
	must(t, err)
	must(t, m.Revert(made))
	if yes, err := v.Reverted(w.ctx, first); err != nil || !yes {
		t.Errorf("after a revert: %v %v", yes, err)
	}
	second := freeze()
	if yes, err := v.Reverted(w.ctx, second); err != nil || yes {
		t.Errorf("the revert was before: %v %v", yes, err)
	}
	// Without the events of that time nobody knows, whatever happened since.
	w.lab.PurgeEvents()
	for range 2 {
		if yes, err := v.Reverted(w.ctx, second); !errors.Is(err, ErrNotFound) || yes {
			t.Errorf("events purged: %v %v", yes, err)
		}
		freeze()
	}
	w.c.vim.ServiceContent.EventManager = nil
	if yes, err := v.Reverted(w.ctx, second); !errors.Is(err, ErrUnsuitable) || yes {
		t.Errorf("no events: %v %v", yes, err)
	}
}

// Somebody takes a snapshot while tracking is switched on, and switching it off again fails. The journal keeps that, and
// the next start switches it off.
func TestTrackingUnderASnapshotIsTakenBack(t *testing.T) {
	w := start(t, machines("web"))
	v, m := w.find("web"), w.lab.Machine("web")
	op, err := w.j.Begin("", "repo1")
	must(t, err)
	switched := false
	w.lab.Inject(lab.Fault{Method: "ReconfigVM_Task", Times: -1, Do: func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if switched {
			lab.Fail(&types.NoPermission{PrivilegeId: "VirtualMachine.Config.ChangeTracking"})(rw, r, next)
			return
		}
		switched = true
		next.ServeHTTP(rw, r)
		if err := m.Idle(r.Context()); err != nil {
			t.Error(err)
		}
		if _, err := m.Snapshot("theirs"); err != nil {
			t.Error(err)
		}
	}})
	if _, err := v.EnableCBT(w.ctx, op); !errors.Is(err, ErrChangeTracking) || !errors.Is(err, ErrPermission) {
		t.Errorf("error %v", err)
	}
	w.lab.ClearFaults()
	if err := op.End(); !errors.Is(err, ErrLeftover) {
		t.Errorf("the journal forgot it: %v", err)
	}
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Undone) != 1 || w.state(v).CBT {
		t.Errorf("%+v, tracking on %v", report, w.state(v).CBT)
	}
}
