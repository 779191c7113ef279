package lab_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The lab hangs on four seams of the simulator. These tests use nothing else of the lab, so that an upgrade of govmomi
// which closes a seam says so here, and not by something odd elsewhere.

type seam struct {
	called  moref // _this of the redirected call
	updates []string
}

func (*seam) Lock()            {}
func (*seam) Unlock()          {}
func (*seam) Reference() moref { return moref{Type: "Seam", Value: "seam"} }

// ConsolidateVMDisksTask is a method the simulator's machine does not have.
func (s *seam) ConsolidateVMDisksTask(_ *simulator.Context, req *types.ConsolidateVMDisks_Task) soap.HasFault {
	s.called = req.This
	return &methods.ConsolidateVMDisks_TaskBody{Res: &types.ConsolidateVMDisks_TaskResponse{Returnval: moref{Type: "Task", Value: "task-0"}}}
}

func (s *seam) PutObject(*simulator.Context, mo.Reference) {}
func (s *seam) RemoveObject(*simulator.Context, moref)     {}
func (s *seam) UpdateObject(_ *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	if vm, ok := obj.(*mo.VirtualMachine); ok {
		for _, c := range changes {
			if c.Name == "config.changeVersion" && vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled {
				s.updates = append(s.updates, c.Name)
			}
		}
	}
}

func TestSimulatorSeams(t *testing.T) {
	model := simulator.VPX()
	model.Machine, model.ClusterHost, model.Cluster = 1, 0, 0
	if err := model.Create(); err != nil {
		t.Fatal(err)
	}
	defer model.Remove()
	s := new(seam)
	reg := model.Map()
	reg.Put(s)
	reg.AddHandler(s)
	reg.Handler = func(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
		if ctx.Session != nil && m.Name == "ConsolidateVMDisks_Task" {
			m.This = s.Reference()
		}
		return nil, nil
	}
	before := false
	model.Service.ServeMux = http.NewServeMux()
	model.Service.ServeMux.HandleFunc("POST /sdk", func(w http.ResponseWriter, r *http.Request) {
		before = true
		model.Service.ServeSDK(w, r)
	})
	server := model.Service.NewServer()
	defer server.Close()
	c, err := govmomi.NewClient(t.Context(), server.URL, true)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdleConnections()
	vm := reg.Any("VirtualMachine").(*simulator.VirtualMachine)

	t.Run("a handler can rewrite This of a call", func(t *testing.T) {
		if _, err := methods.ConsolidateVMDisks_Task(t.Context(), c, &types.ConsolidateVMDisks_Task{This: vm.Self}); err != nil {
			t.Fatal(err)
		}
		if s.called != vm.Self {
			t.Errorf("the extension was told %v", s.called)
		}
	})
	t.Run("changeVersion is announced when change tracking is switched", func(t *testing.T) {
		task, err := object.NewVirtualMachine(c.Client, vm.Self).Reconfigure(t.Context(), types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(true)})
		if err != nil {
			t.Fatal(err)
		}
		if err := task.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(s.updates) == 0 {
			t.Error("no update of config.changeVersion with the new setting in place")
		}
	})
	t.Run("a pattern with a method wins over the simulator's", func(t *testing.T) {
		if !before {
			t.Error("POST /sdk went past the pattern")
		}
		rec := httptest.NewRecorder()
		model.Service.ServeMux.ServeHTTP(rec, httptest.NewRequest("GET", "/about", nil))
		if body, _ := io.ReadAll(rec.Body); rec.Code != http.StatusOK || len(body) == 0 {
			t.Error("the simulator's own patterns are gone")
		}
	})
	t.Run("a lock belongs to the Context", func(t *testing.T) {
		one, two := &simulator.Context{Map: reg}, &simulator.Context{Map: reg}
		unlock := reg.AcquireLock(one, vm.Self)
		inner := make(chan struct{})
		reg.WithLock(one, vm.Self, func() { close(inner) })
		<-inner // re-entered
		waits := make(chan struct{})
		go reg.WithLock(two, vm.Self, func() { close(waits) })
		select {
		case <-waits:
			t.Error("another Context got the lock as well")
		case <-time.After(20 * time.Millisecond):
		}
		unlock()
		<-waits
	})
}
