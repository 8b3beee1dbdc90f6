// Package v20170312 stands in for the client of one cloud, which the Go module proxy does
// not have: flannel's backend for that cloud compiles, and says so when it is used.
package v20170312

import "errors"

var errAbsent = errors.New("this flannel is built without the client of Tencent Cloud")

type Client struct{}

func NewClientWithSecretId(id, key, region string) (*Client, error) { return &Client{}, nil }

type Filter struct {
	Name   *string
	Values []*string
}

type Route struct {
	RouteId                                                 *uint64
	DestinationCidrBlock, GatewayType, GatewayId, RouteType *string
	Enabled                                                 *bool
}

type DescribeRouteTablesRequest struct{ Filters []*Filter }

func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return &DescribeRouteTablesRequest{}
}

type DescribeRouteTablesResponse struct {
	Response *struct {
		RouteTableSet []*struct {
			RouteTableId *string
			RouteSet     []*Route
		}
	}
}

func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errAbsent
}

type RoutesRequest struct {
	RouteTableId *string
	Routes       []*Route
}

func NewDeleteRoutesRequest() *RoutesRequest { return &RoutesRequest{} }
func NewCreateRoutesRequest() *RoutesRequest { return &RoutesRequest{} }

func (*Client) DeleteRoutes(*RoutesRequest) (*struct{}, error) { return nil, errAbsent }
func (*Client) CreateRoutes(*RoutesRequest) (*struct{}, error) { return nil, errAbsent }
