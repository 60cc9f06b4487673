-module(check).
-export([main/0]).

main() ->
    Self = self(),
    [spawn_link(fun() -> work(Self, N, 0, []) end) || N <- lists:seq(1, 4)],
    beat(0).

beat(Round) ->
    [receive {N, _} -> ok end || N <- lists:seq(1, 4)],
    io:format("ok ~p~n", [Round]),
    beat(Round + 1).

work(Parent, N, Round, Kept) ->
    New = [begin B = rand:bytes(1 + rand:uniform(9000)), {B, erlang:crc32(B), lists:seq(1, K)} end
           || K <- lists:seq(1, 20)],
    All = lists:sublist(New ++ Kept, 400),
    case lists:all(fun({B, C, L}) -> erlang:crc32(B) =:= C andalso length(L) =< 20 end, All) of
        true -> Parent ! {N, Round};
        false -> io:format("bad~n"), halt(3)
    end,
    timer:sleep(2),
    work(Parent, N, Round + 1, All).
