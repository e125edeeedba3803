/* Who may publish a key, and what garbage collection may remove: every order of requests of two attempts, of one that
 * follows a job of a dead run, and of the collector. Times are abstracted: a lease may run out at any moment at which
 * its holder has not just renewed it, and what was written long ago ("old") is told from what was written just now.
 *
 *     make protocol        spin -a, gcc, pan: no error is what is promised
 *     spin -DCHECK_FIRST   as it was: the lease is checked before the digests are written
 *     spin -DNO_SECOND_LOOK  as it was: the collector removes what its listing of before called old
 *
 * Both of these let a manifest appear whose objects are gone. tests/fault/test_protocol.py runs the code itself.
 */

#define ATTEMPTS 2
#define NONE 255

/* --- the store: each of these is one object, each access one request ------------------------------------------------ */
byte epoch = 0;          /* of the lease */
byte follower = NONE;    /* the process in the lease record; NONE: given back */
bool expired = false;    /* by the store's clock */
byte manifest = 0;       /* epoch of the published result; 0: none */
byte writes = 0;         /* manifests that were written */
bool objects[6];         /* by epoch: are they there */
bool digests[6];         /* written just now, beside the objects */
bool old[6];             /* were the objects written long ago */

/* --- what must hold ------------------------------------------------------------------------------------------------- */
#define whole (manifest == 0 || objects[manifest])
active proctype monitor() {
    do
    :: atomic { !whole -> assert(false) }          /* nothing torn is visible */
    :: atomic { writes > 1 -> assert(false) }      /* no key is published twice */
    :: atomic { timeout -> break }
    od
}

inline acquire(me, got) {
    byte seen, who; bool free;
    atomic { seen = epoch; who = follower; free = (follower == NONE || expired) }      /* GET */
    if
    :: !free -> got = 0
    :: else ->
        atomic {                                                                      /* PUT If-Match */
            if
            :: epoch == seen && follower == who && (follower == NONE || expired) ->
                epoch++; follower = me; expired = false; got = epoch
            :: else -> got = 0
            fi
        }
    fi
}

/* the process that does the work: it may stop for any time between any two requests */
proctype job(byte mine) {
    bool held;
    objects[mine] = true;
    if :: old[mine] = true :: skip fi;                /* it sleeps, or the upload took long */
#ifdef CHECK_FIRST
    atomic { held = (epoch == mine && follower != NONE) };
    if :: !held -> goto over :: else fi;
    digests[mine] = true;
#else
    digests[mine] = true;
    atomic { held = (epoch == mine && follower != NONE) };
    if :: !held -> goto over :: else fi;
#endif
    atomic {                                          /* PUT If-None-Match */
        if
        :: manifest == 0 -> manifest = mine; writes++
        :: else
        fi
    };
over: skip
}

proctype attempt(byte me) {
    byte mine = 0;
    acquire(me, mine);
    if :: mine == 0 -> goto over :: else fi;
    if
    :: atomic { manifest != 0 -> if :: epoch == mine && follower == me -> follower = NONE :: else fi }; goto over
    :: else
    fi;
    run job(mine);
    do                                                /* heartbeats; or it dies, or is stopped for ever */
    :: atomic { if :: epoch == mine && follower == me -> expired = false :: else fi }
    :: break
    :: atomic { manifest == mine && epoch == mine && follower == me -> follower = NONE }; break
    od;
over: skip
}

/* another run takes over the job of a dead one: same epoch, another follower */
proctype takeover(byte me) {
    byte seen, who;
    atomic { seen = epoch; who = follower };
    atomic {
        if
        :: epoch == seen && follower == who && who != NONE && expired -> follower = me; expired = false
        :: else -> goto over
        fi
    };
    assert(epoch != seen || follower == me);          /* the former follower neither renews nor gives back */
    if :: atomic { epoch == seen && follower == me -> follower = NONE } :: skip fi;
over: skip
}

active proctype clock() {                             /* leases run out at any time */
    byte turns = 0;
    do
    :: turns < 2 && !expired -> atomic { expired = true; turns++ }
    :: break
    od
}

active proctype collector() {
    byte mine, one; bool listed;
    byte turns = 0;
    do
    ::  turns < 1 ->
        turns++;
        mine = 0; listed = false;
        if :: one = 1 :: one = 2 fi;
        atomic { listed = (objects[one] && old[one] && !digests[one] && manifest != one) };   /* a listing, and marks */
        if :: !listed -> goto next :: else fi;
        acquire(9, mine);
        if :: mine == 0 -> goto next :: else fi;
        if :: manifest == one -> goto back :: else fi;                                      /* the manifest, once more */
#ifndef NO_SECOND_LOOK
        if :: digests[one] -> goto back :: else fi;                                         /* the listing, once more */
#endif
        objects[one] = false;
back:   atomic { if :: epoch == mine && follower == 9 -> follower = NONE :: else fi };
next:   skip
    :: break
    od
}

init {
    atomic { run attempt(0); run attempt(1); run takeover(2) }
}
