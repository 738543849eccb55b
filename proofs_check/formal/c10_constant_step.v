(* C10, a constant step: proportional rule p_(n+1) = p_n + eta (L_n - A_n), a fresh batch of scores at every step,
   chosen by anyone, any targets, any K. Pathwise, against every comparator q:

     2 eta sum_(n < N) (D_n(p_n) - D_n(q))  <=  |p_0 - q|^2 + eta^2 sum_(n < N) |A_n - L_n|^2.

   With equal targets |A_n - L|^2 is at most T^2 (K - K^2 / E), whatever the scores, and D does not change when q moves
   by a constant, so that |q|^2 may be taken as E spread(q)^2 / 4. This makes a regret bound, from p_0 = 0, that needs
   neither a projection nor any assumption on the batches:

     2 eta sum_(n < N) (D_n(p_n) - D_n(q))  <=  E spread(q)^2 / 4 + eta^2 N T^2 (K - K^2 / E). *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk c2_monotonicity_condition.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section ConstantStep.
Variables (R : realDomainType) (E K : nat) (eta : R).
Hypotheses (KE : (K <= E)%N) (eta0 : 0 < eta).
Implicit Types (p q : 'I_E -> R).

Definition squared_distance p q : R := \sum_k (p k - q k) ^+ 2.
Definition squared_violation T (scores : 'I_T -> 'I_E -> R) (L p : 'I_E -> R) : R :=
  \sum_k ((load K scores p k)%:R - L k) ^+ 2.

Lemma one_step T (scores : 'I_T -> 'I_E -> R) L p q :
  2%:R * eta * (D K scores L p - D K scores L q) <=
  squared_distance p q - squared_distance (proportional_step K scores L eta p) q
  + eta ^+ 2 * squared_violation scores L p.
Proof.
have gap := sandwich_upper scores L KE q p.
have eta2 : 0 < 2%:R * eta by rewrite mulr_gt0 ?ltr0n.
rewrite -(ler_pmul2l eta2) in gap; apply: le_trans gap _.
rewrite le_eqVlt; apply/orP; left; apply/eqP.
rewrite /squared_distance /squared_violation !mulr_sumr -sumrB -big_split /=; apply: eq_bigr => k _.
by rewrite /proportional_step; ring.
Qed.

(* T n tokens arrive at step n, and L n are their targets. *)
Variables (T : nat -> nat) (batch : forall n, 'I_(T n) -> 'I_E -> R) (L : nat -> 'I_E -> R).

Fixpoint online_bias p n : 'I_E -> R :=
  if n is n'.+1 then proportional_step K (@batch n') (L n') eta (online_bias p n') else p.

Theorem constant_step p q N :
  2%:R * eta * (\sum_(0 <= n < N) (D K (@batch n) (L n) (online_bias p n) - D K (@batch n) (L n) q)) <=
  squared_distance p q + eta ^+ 2 * \sum_(0 <= n < N) squared_violation (@batch n) (L n) (online_bias p n).
Proof.
suff : 2%:R * eta * (\sum_(0 <= n < N) (D K (@batch n) (L n) (online_bias p n) - D K (@batch n) (L n) q)) <=
    squared_distance p q - squared_distance (online_bias p N) q
    + eta ^+ 2 * \sum_(0 <= n < N) squared_violation (@batch n) (L n) (online_bias p n).
  move/le_trans; apply; rewrite ler_add2r ler_subl_addr ler_addl.
  by apply: sumr_ge0 => k _; apply: sqr_ge0.
elim: N => [|N IH]; first by rewrite !big_geq // !mulr0 addr0 subrr.
rewrite !big_nat_recr //= [leLHS]mulrDr [eta ^+ 2 * _]mulrDr.
apply: le_trans (ler_add IH (one_step (@batch N) (L N) (online_bias p N) q)) _.
rewrite le_eqVlt; apply/orP; left; apply/eqP; rewrite [LHS]addrACA; congr (_ + _).
by rewrite addrA subrK.
Qed.

End ConstantStep.

Section BoundedViolation.
Variables (F : realFieldType) (T E K : nat) (scores : 'I_T -> 'I_E -> F).
Hypothesis KE : (K <= E)%N.

Theorem squared_violation_le (p : 'I_E -> F) :
  squared_violation K scores (even F T K) p <= T%:R ^+ 2 * (K%:R - K%:R ^+ 2 / E%:R).
Proof.
have load_le_T k : (load K scores p k)%:R <= T%:R :> F.
  by rewrite ler_nat -[X in (_ <= X)%N]card_ord; apply: max_card.
have [E0|E0] := posnP E.
  have K0 : K = 0%N by apply/eqP; move: KE; rewrite E0 leqn0.
  rewrite /squared_violation big1 ?K0 ?subr_ge0 ?expr0n ?mul0r ?subrr ?mulr0 // => k.
  by have := ltn_ord k; rewrite [X in (_ < X)%N]E0.
have E_neq0 : E%:R != 0 :> F by rewrite pnatr_eq0 -lt0n.
have total : \sum_k (load K scores p k)%:R = (K * T)%:R :> F by rewrite -natr_sum sum_loads.
have -> : T%:R ^+ 2 * (K%:R - K%:R ^+ 2 / E%:R) =
    \sum_k (T%:R * (load K scores p k)%:R - 2%:R * even F T K k * (load K scores p k)%:R + even F T K k ^+ 2).
  rewrite /even big_split sumrB /= -!mulr_sumr total sumr_const card_ord natrM -[_ *+ E]mulr_natr.
  by field.
apply: ler_sum => k _; set a := (load _ _ _ _)%:R; have a0 : 0 <= a by rewrite ler0n.
rewrite -subr_ge0; set l := even _ _ _ _.
have -> : T%:R * a - 2%:R * l * a + l ^+ 2 - (a - l) ^+ 2 = a * (T%:R - a) by ring.
by rewrite mulr_ge0 // subr_ge0 load_le_T.
Qed.

(* The gauge: D does not see a constant. *)
Lemma D_gauge (c : F) q : (0 < E)%N -> D K scores (even F T K) (fun k => q k + c) = D K scores (even F T K) q.
Proof.
move=> E0; have E_neq0 : E%:R != 0 :> F by rewrite pnatr_eq0 -lt0n.
have top i : top_sum K (biased scores (fun k => q k + c) i) = top_sum K (biased scores q i) + K%:R * c.
  have same : topk K (biased scores (fun k => q k + c) i) = topk K (biased scores q i).
    apply/setP=> k; rewrite !inE; congr (_ < _)%N; apply: eq_card => j.
    by rewrite !inE /beats /biased !addrA ltr_add2r (inj_eq (addIr c)).
  rewrite /top_sum same; under eq_bigr do rewrite /biased addrA.
  by rewrite big_split sumr_const card_topk // mulr_natl.
have sum_targets : \sum_(k < E) even F T K k = (K * T)%:R.
  by rewrite /even sumr_const card_ord -[_ *+ E]mulr_natr divfK.
have shift : \sum_k even F T K k * (q k + c) = \sum_k even F T K k * q k + (K * T)%:R * c.
  by rewrite -sum_targets mulr_suml -big_split; apply: eq_bigr => k _; rewrite mulrDr.
rewrite /D shift; under eq_bigr do rewrite top.
rewrite big_split sumr_const card_ord -[_ * c *+ T]mulr_natr natrM /=.
have cancel (x y z : F) : x + z - (y + z) = x - y by ring.
by rewrite mulrAC cancel.
Qed.

End BoundedViolation.

Section Regret.
Variables (F : realFieldType) (T E K : nat) (eta : F) (batch : nat -> 'I_T -> 'I_E -> F).
Hypotheses (KE : (K <= E)%N) (E0 : (0 < E)%N) (eta0 : 0 < eta).
Local Notation L := (even F T K).
Local Notation D n := (D K (batch n) L).
Local Notation bias := (online_bias K eta batch (fun=> L) (fun=> 0)).

(* Every q is, up to a constant, within E spread(q)^2 / 4 of 0. *)
Lemma centered q : exists c,
  squared_distance (fun=> 0 : F) (fun k : 'I_E => q k + c) <= E%:R * (spread q / 2%:R) ^+ 2.
Proof.
case: (@Order.TotalTheory.arg_minP _ _ _ (Ordinal E0) xpredT q isT) => j _ lowest.
exists (- (q j + spread q / 2%:R)); rewrite -[X in X%:R * _]card_ord mulr_natl -sumr_const.
apply: ler_sum => k _; rewrite -subr_ge0 subr_sqr.
have := spread_ge q k j; have := lowest k isT; set s := spread q => lo hi.
have -> : s / 2%:R - (0 - (q k + - (q j + s / 2%:R))) = q k - q j by field.
have -> : s / 2%:R + (0 - (q k + - (q j + s / 2%:R))) = s - (q k - q j) by field.
by rewrite mulr_ge0 // subr_ge0.
Qed.

Theorem online_regret q N :
  2%:R * eta * (\sum_(0 <= n < N) (D n (bias n) - D n q)) <=
  E%:R * (spread q / 2%:R) ^+ 2 + eta ^+ 2 * (N%:R * (T%:R ^+ 2 * (K%:R - K%:R ^+ 2 / E%:R))).
Proof.
have [c near] := centered q.
have := constant_step (T := fun=> T) KE eta0 batch (fun=> L) (fun=> 0) (fun k => q k + c) N.
under eq_bigr do rewrite D_gauge //.
move/le_trans; apply; rewrite ler_add // ler_wpmul2l ?sqr_ge0 // -[N in N%:R]subn0 mulr_natl -sumr_const_nat.
by apply: ler_sum => n _; apply: squared_violation_le.
Qed.

End Regret.
