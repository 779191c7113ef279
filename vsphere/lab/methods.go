package lab

import (
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Disabled methods: a vCenter remembers for a machine which methods nobody may call, and who said so. The calls that
// change this belong to its internal API, of which the simulator has no types; they are answered here, like those of the
// NfcService.

// methodSwitch is a call of AuthorizationManager.DisableMethods or EnableMethods.
type methodSwitch struct {
	This   ref   `xml:"_this"`
	Entity []ref `xml:"entity"`
	Method []struct {
		Disable string `xml:"method"`
		Enable  string `xml:",chardata"`
	} `xml:"method"`
	Source string `xml:"sourceId"`
}

// serveMethodSwitch answers one call, or returns the fault to answer with.
func (s *sim) serveMethodSwitch(w http.ResponseWriter, r *http.Request, method string, req methodSwitch) types.BaseMethodFault {
	if req.This != *s.content().AuthorizationManager {
		return &types.ManagedObjectNotFound{Obj: req.This}
	}
	for _, machine := range req.Entity {
		if sess := s.sessionOf(r); sess != nil {
			if f := s.permitted(sess.UserName, &simulator.Method{Name: method, This: machine}); f != nil {
				return f
			}
		}
		var fault types.BaseMethodFault
		if !s.withVM(s.context(), machine, func(vm *simulator.VirtualMachine) { fault = s.switchMethods(vm, method, req) }) {
			fault = &types.ManagedObjectNotFound{Obj: machine}
		}
		if fault != nil {
			return fault
		}
	}
	writeEnvelope(w, http.StatusOK, fmt.Appendf(nil, `<%[1]sResponse xmlns="urn:vim25"></%[1]sResponse>`, method))
	return nil
}

// switchMethods disables methods of a machine, which fails for one that is disabled already, or enables those that the
// same source disabled. Machine lock held.
func (s *sim) switchMethods(vm *simulator.VirtualMachine, method string, req methodSwitch) types.BaseMethodFault {
	m := s.know(vm.Self)
	m.mu.Lock()
	next := maps.Clone(m.disabled)
	m.mu.Unlock()
	if next == nil {
		next = map[string]string{}
	}
	for _, x := range req.Method {
		if method == "EnableMethods" {
			maps.DeleteFunc(next, func(name, source string) bool { return name == x.Enable && source == req.Source })
			continue
		}
		if source, ok := next[x.Disable]; ok {
			return &types.MethodAlreadyDisabledFault{SourceId: source}
		}
		next[x.Disable] = req.Source
	}
	m.mu.Lock()
	m.disabled = next
	m.mu.Unlock()
	s.context().Update(vm, []types.PropertyChange{{Name: "disabledMethod", Val: slices.Sorted(maps.Keys(next))}})
	return nil
}

// disabledBy is who disabled a method of the machine; empty: nobody did.
func (m *machine) disabledBy(method string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disabled[method]
}

// DisabledMethods are the methods of the machine that may not be called, each with the source that disabled it.
func (v *VM) DisabledMethods() map[string]string {
	m := v.lab.sim.machine(v.ref)
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.disabled)
}
