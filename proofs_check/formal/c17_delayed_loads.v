(* C17, delayed loads: sign rule with step u whose bias moves by the load of d steps ago and rests for the first d
   steps, equal targets, any batches of range at most rho, any K. Then for every n

     spread(p_n)  <=  max(spread(p_0), rho + 2u (d + 1)).

   For if p_j - p_k > rho d steps ago, the load seen has A_j >= A_k, and the difference does not grow; otherwise it has
   grown by at most 2u in each of d + 1 steps. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk c3_preference_rule.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section DelayedLoads.
Variables (R : realDomainType) (E K d : nat) (u rho : R).
Variables (T : nat -> nat) (batch : forall n, 'I_(T n) -> 'I_E -> R) (L : nat -> 'I_E -> R) (p : nat -> 'I_E -> R).
Implicit Types (n : nat) (j k : 'I_E).
Local Notation seen n k := (Num.sg (L n k - (load K (@batch n) (p n) k)%:R)).
Hypotheses (u0 : 0 < u) (equal : forall n j k, L n j = L n k) (range : forall n, score_range (@batch n) <= rho).
Hypothesis rests : forall n k, (n < d)%N -> p n.+1 k = p n k.
Hypothesis steps : forall n k, p (n + d).+1 k = p (n + d)%N k + u * seen n k.

Lemma grows_by n j k : p n.+1 j - p n.+1 k <= p n j - p n k + 2%:R * u.
Proof.
have [early|late] := ltnP n d; first by rewrite !rests // ler_addl mulr_ge0 ?ler0n // ltW.
rewrite -(subnK late) !steps.
have -> (x y a b : R) : x + u * a - (y + u * b) = x - y + u * (a - b) by ring.
rewrite ler_add2l mulrC ler_wpmul2r ?(ltW u0) // (_ : 2%:R = 1 - -1); last by rewrite opprK.
by apply: ler_sub; [case/andP: (sg_bounds (L (n - d)%N j - (load K (@batch (n - d)%N) (p (n - d)%N) j)%:R))
  | case/andP: (sg_bounds (L (n - d)%N k - (load K (@batch (n - d)%N) (p (n - d)%N) k)%:R))].
Qed.

Lemma grows_by_steps n i j k : p (n + i)%N j - p (n + i)%N k <= p n j - p n k + 2%:R * u * i%:R.
Proof.
elim: i => [|i IH]; first by rewrite addn0 mulr0 addr0.
rewrite addnS; apply: le_trans (grows_by (n + i) j k) (le_trans (ler_add IH (lexx _)) _).
by rewrite -[in i.+1%:R]addn1 natrD mulrDr mulr1 addrA.
Qed.

Theorem bounded_delayed_bias n : spread (p n) <= Num.max (spread (p 0%N)) (rho + 2%:R * u * d.+1%:R).
Proof.
apply: spread_le => [|j k]; first by rewrite le_maxr spread_ge0.
elim: n => [|n IH]; first by rewrite le_maxr spread_ge.
have [early|late] := ltnP n d; first by rewrite !rests.
rewrite -(subnK late) in IH *; set n0 := (n - d)%N in IH *.
have [near|far] := lerP (p n0 j - p n0 k) rho.
  rewrite le_maxr -addnS; apply/orP; right; apply: le_trans (grows_by_steps n0 d.+1 j k) _.
  by rewrite ler_add2r.
apply: le_trans IH; rewrite !steps.
have -> (x y a b : R) : x + u * a - (y + u * b) = x - y + u * (a - b) by ring.
rewrite ger_addl pmulr_rle0 // subr_le0; apply: sg_mono; rewrite (equal n0 j k) ler_add2l ler_opp2 ler_nat.
apply: load_le => i; rewrite /biased -ltr_subr_addr.
have := le_lt_trans (le_trans (score_range_ge (@batch n0) i k j) (range n0)) far.
by rewrite ltr_subl_addr addrC addrA.
Qed.

End DelayedLoads.
