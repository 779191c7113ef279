package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

// A host loads the plugin, tells it where machines and repository are, and makes a point of every machine of one ESXi
// host. It shows what happens, and tells failures that pass by themselves from those that a person must look at.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Hour)
	defer cancel()
	p, err := plugin.Load(ctx, plugin.LoadOptions{Path: "/usr/lib/vmkeep/vmkeep-plugin", Host: "example 1.0"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil { // lets the plugin clean up vSphere first
			log.Print(err)
		}
	}()
	if err := p.Configure(ctx, plugin.Config{
		VSphere:    plugin.VSphere{URL: "https://vc.example/sdk", Username: "backup@vsphere.local", Password: "from a vault", Thumbprint: "AB:CD:…"},
		Repository: plugin.RepositoryConfig{Location: "s3:https://s3.example/backups", Password: "from a vault"},
	}); err != nil {
		log.Fatal(err)
	}
	report, err := p.Backup(ctx, plugin.BackupRequest{Selection: plugin.Selection{Hosts: []string{"esx1.example"}}}, func(e plugin.Event) {
		switch e.Kind {
		case plugin.EventPhase:
			fmt.Println(e.Machine, e.Disk, e.Phase)
		case plugin.EventDiagnostic:
			fmt.Println(e.Machine, e.Diagnostic.Summary, e.Diagnostic.Remedy)
		}
	})
	var failed *plugin.Error
	switch {
	case errors.As(err, &failed) && failed.Code == plugin.CodeLocked:
		fmt.Println("try again later:", failed.Detail)
	case errors.As(err, &failed):
		fmt.Println(failed.Summary, "-", failed.Remedy)
	}
	for _, m := range report.Machines {
		if m.Err != nil {
			fmt.Println(m.Machine.Name, m.Err.Summary, "-", m.Err.Remedy)
			continue
		}
		for _, d := range m.Point.Disks {
			fmt.Println(m.Machine.Name, m.Point.ID, d.Name, d.Reason, d.Read)
		}
	}
}

// A restore into a new machine is planned first: the plan tells what would happen, and what cannot.
func ExampleService_planRestore() {
	var p plugin.Service // from Load
	restore := func(ctx context.Context) error {
		request := plugin.RestoreRequest{Machine: "web", Point: "latest", Mode: plugin.RestoreNew, Verify: true,
			Target: plugin.Target{Name: "web-restored", Networks: map[string]string{"VM Network": "quarantine"}}}
		plan, err := p.PlanRestore(ctx, request)
		if err != nil {
			return err
		}
		if len(plan.Problems) > 0 {
			return fmt.Errorf("not now: %v", plan.Problems)
		}
		_, err = p.Restore(ctx, request, nil)
		return err
	}
	_ = restore
}
