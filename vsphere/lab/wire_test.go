package lab_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func (b *bench) now() error {
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Second)
	defer cancel()
	_, err := methods.CurrentTime(ctx, b.vim, &types.CurrentTime{This: moref{Type: "ServiceInstance", Value: "ServiceInstance"}})
	return err
}

func TestCallsGoWrong(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	for _, c := range []struct {
		name string
		do   lab.Effect
		want string // part of the error
	}{
		{"503", lab.HTTPStatus(http.StatusServiceUnavailable), "503"},
		{"reset", lab.Reset(), "EOF"},
		{"lost answer", lab.LoseAnswer(), "EOF"},
		{"truncated", lab.Truncate(), "unexpected EOF"},
		{"hang", lab.Hang(), "deadline"},
		{"fault", lab.Fail(&types.NoPermission{PrivilegeId: "Some.Thing"}), "ServerFaultCode"},
		{"slow", lab.Delay(10 * time.Millisecond), ""},
	} {
		b.lab.ResetCalls()
		undo := b.lab.Inject(lab.Fault{Method: "CurrentTime", Nth: 2, Do: c.do})
		if err := b.now(); err != nil {
			t.Errorf("%s: the first call: %v", c.name, err)
		}
		switch err := b.now(); {
		case c.want == "":
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		case err == nil || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %v", c.name, err)
		}
		if err := b.now(); err != nil {
			t.Errorf("%s: the third call: %v", c.name, err)
		}
		undo()
		if n := b.lab.Count("CurrentTime"); n < 3 {
			t.Errorf("%s: %d calls seen", c.name, n)
		}
	}
	b.lab.Inject(lab.Fault{Method: "CurrentTime", Times: -1, Do: lab.Fail(&types.NoPermission{PrivilegeId: "Some.Thing"})})
	for range 3 {
		var np *types.NoPermission
		if _, ok := fault.As(b.now(), &np); !ok || np.PrivilegeId != "Some.Thing" {
			t.Error("not every call failed")
		}
	}
	b.lab.ClearFaults()
	if err := b.now(); err != nil {
		t.Error(err)
	}
}

// A call whose answer is lost was made all the same.
func TestLostAnswerIsDone(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	b.lab.Inject(lab.Fault{Method: "CreateSnapshot_Task", Do: lab.LoseAnswer()})
	if _, err := b.vm("web").CreateSnapshot(b.ctx, "s", "", false, false); err == nil {
		t.Fatal("the answer came")
	}
	if err := b.lab.Machine("web").Idle(b.ctx); err != nil {
		t.Fatal(err)
	}
	if n := b.lab.Machine("web").SnapshotCount(); n != 1 {
		t.Errorf("%d snapshots", n)
	}
}

// Every call of a client can be made to fail in turn, and each failure is seen by the client.
func TestFailEveryCallInTurn(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	work := func() error {
		ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
		defer cancel()
		c, err := govmomi.NewClient(ctx, b.lab.URL(), true)
		if err != nil {
			return err
		}
		defer c.CloseIdleConnections()
		vm := object.NewVirtualMachine(c.Client, b.vm("web").Reference())
		task, err := vm.CreateSnapshot(ctx, "s", "", false, false)
		if err != nil {
			return err
		}
		if err = task.Wait(ctx); err != nil {
			return err
		}
		if task, err = vm.RemoveAllSnapshot(ctx, nil); err != nil {
			return err
		}
		return errors.Join(task.Wait(ctx), c.Logout(ctx))
	}
	b.lab.ResetCalls()
	if err := work(); err != nil {
		t.Fatal(err)
	}
	calls := b.lab.Calls()
	if len(calls) < 6 {
		t.Fatalf("only %d calls: %v", len(calls), calls)
	}
	failed := 0
	for n := range calls {
		undo := b.lab.Inject(lab.Fault{Nth: n + 1, Do: lab.HTTPStatus(http.StatusBadGateway)})
		if work() != nil {
			failed++
		}
		undo()
	}
	if failed < len(calls)-2 { // destroying a filter may fail unseen
		t.Errorf("%d of %d failures were seen", failed, len(calls))
	}
}

func TestSessionsEnd(t *testing.T) {
	b := start(t, lab.Options{SessionIdle: time.Second, SessionAge: time.Hour, Machines: []lab.Machine{oneDisk("web")}})
	notAuthenticated := func(what string) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; {
			if err := b.now(); fault.Is(err, &types.NotAuthenticated{}) {
				return
			} else if time.Now().After(end) {
				t.Fatalf("%s: the session lives: %v", what, err)
			}
			if what == "idle" {
				time.Sleep(2500 * time.Millisecond) // being idle is what is tested
			}
		}
	}
	notAuthenticated("idle")
	again := b.login(b.lab.URL().User.Username())
	b.vim = again.Client
	if err := b.now(); err != nil {
		t.Fatal(err)
	}
	b.lab.ExpireSessions()
	notAuthenticated("expired")
	if b.lab.Sessions() != 0 {
		t.Error("sessions are left")
	}

	old, err := lab.Start(t.Context(), lab.Options{SessionAge: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	c, err := govmomi.NewClient(b.ctx, old.URL(), true)
	if err == nil {
		defer c.CloseIdleConnections()
		_, err = methods.CurrentTime(b.ctx, c, &types.CurrentTime{This: moref{Type: "ServiceInstance", Value: "ServiceInstance"}})
	}
	if !fault.Is(err, &types.NotAuthenticated{}) {
		t.Errorf("a session past its age: %v", err)
	}
}

func TestPrivileges(t *testing.T) {
	b := start(t, lab.Options{
		Users: []lab.User{{Name: "backup", Password: "lab", Privileges: []string{"VirtualMachine.State.CreateSnapshot", "Datastore.AllocateSpace", "Datastore.Browse"}},
			{Name: "second admin", Password: "lab"}},
		Machines: []lab.Machine{oneDisk("web")}})
	if _, err := govmomi.NewClient(b.ctx, b.lab.URLFor("backup", "wrong"), true); !fault.Is(err, &types.InvalidLogin{}) {
		t.Errorf("wrong password: %v", err)
	}
	if _, err := govmomi.NewClient(b.ctx, b.lab.URLFor("stranger", "lab"), true); !fault.Is(err, &types.InvalidLogin{}) {
		t.Errorf("unknown account: %v", err)
	}
	c := b.login("backup").Client
	vm := object.NewVirtualMachine(c, b.vm("web").Reference())
	refused := func(what string, err error, privilege string) {
		t.Helper()
		var np *types.NoPermission
		if _, ok := fault.As(err, &np); !ok || np.PrivilegeId != privilege {
			t.Errorf("%s: %v, want NoPermission %s", what, err, privilege)
		}
	}
	task, err := vm.CreateSnapshot(b.ctx, "s", "", false, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Wait(b.ctx); err != nil {
		t.Fatal(err)
	}
	_, err = vm.RemoveAllSnapshot(b.ctx, nil)
	refused("remove", err, "VirtualMachine.State.RemoveSnapshot")
	_, err = vm.Reconfigure(b.ctx, types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(true)})
	refused("tracking", err, "VirtualMachine.Config.ChangeTracking")
	_, err = vm.PowerOff(b.ctx)
	refused("power off", err, "VirtualMachine.Interact.PowerOff")
	_, err = vm.Destroy(b.ctx)
	refused("destroy", err, "VirtualMachine.Inventory.Delete")

	am := object.NewAuthorizationManager(c)
	ids := []string{"VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot", "Bogus.Privilege"}
	got, err := am.HasUserPrivilegeOnEntities(b.ctx, []moref{vm.Reference()}, "backup", ids)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range got[0].PrivAvailability {
		if p.IsGranted != (i == 0) {
			t.Errorf("%s granted: %v", p.PrivId, p.IsGranted)
		}
	}
	admin := b.login("second admin").Client
	if _, err := object.NewVirtualMachine(admin, vm.Reference()).RemoveAllSnapshot(b.ctx, nil); err != nil {
		t.Errorf("an account without a list may do all: %v", err)
	}
	if err := b.lab.Machine("web").Idle(b.ctx); err != nil {
		t.Fatal(err)
	}
}
