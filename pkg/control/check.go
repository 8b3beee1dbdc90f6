package control

import (
	"context"

	"github.com/subpod/subpod/pkg/api"
)

// Check looks for damage and orphans.
func (s *service) Check(ctx context.Context, req *api.CheckRequest) (*api.CheckResponse, error) {
	found, err := s.Checker.Check(ctx, req.Repair)
	if err != nil {
		return nil, err
	}
	resp := &api.CheckResponse{Findings: []api.Finding{}}
	for _, f := range found {
		resp.Findings = append(resp.Findings, api.Finding(f))
	}
	return resp, nil
}
